#include "memattach/probe/alloc_tracer.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/probe/text_check.h"
#include "memattach/process/permission.h"
#include "memattach/process/proc.h"
#include "window_spans.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kDrainEveryNs = 50'000'000;
/// So many windows share their spans, or those of so long.
constexpr std::size_t kBatch = 24;
constexpr std::uint64_t kBatchNs = 1'000'000'000;

std::uint64_t window_key(std::uint64_t window, trace::AllocKind kind) {
    return window * 4 + static_cast<std::uint64_t>(kind);
}

}  // namespace

AllocTracer::AllocTracer(int pid, const python::Runtime& runtime, const process::Memory& memory,
                         trace::FunctionTable& functions, const AllocProbeOptions& options, AllocSink& sink,
                         Poller& poller)
    : pid_(pid),
      functions_(functions),
      sink_(sink),
      poller_(poller),
      codes_(memory, runtime, functions),
      maps_(pid) {
    if (const auto refusal = process::find_obstacle(pid)) base::throw_error("{}", refusal->text());
    sites_ = find_sites(pid, memory, runtime);
    process_ = std::make_unique<TraceProcess>(pid, runtime, sites_, options);
    watch_ = std::make_unique<BlockWatch>(memory, runtime, sites_);
    live_count_ = std::make_unique<LiveCount>(pid, memory, runtime, sites_);
    live_count_->start(base::monotonic_ns());
    due_ns_ = base::monotonic_ns() + kDrainEveryNs;
    poller_.add(process_->fd(), *this, 0);
}

AllocTracer::~AllocTracer() {
    poller_.remove(process_->fd());
    process_->stop();
}

void AllocTracer::drain() {
    std::uint64_t count = 0;
    if (::read(process_->fd(), &count, sizeof count) < 0 && errno != EAGAIN) return;
    TraceEvent event;
    while (process_->shared().ring.read(event, frames_)) take(event, frames_);
    while (process_->shadow().ring.read(event, frames_)) take(event, frames_);
    const std::uint64_t now_ns = base::monotonic_ns();
    for (Batch& batch : batches_)
        if (!batch.windows.empty() && (now_ns >= batch.due_ns || ending_)) hand_on(batch);
    deliver(false);
    if (ending_) {
        look_last();
        process_->shared().exit_drained.store(1, std::memory_order_release);
    }
}

void AllocTracer::on_time(std::uint64_t now_ns) {
    if (now_ns >= due_ns_) {
        due_ns_ = now_ns + kDrainEveryNs;
        drain();
    }
    if (now_ns >= watch_->due_ns()) look(now_ns);
    if (now_ns >= live_count_->due_ns())
        if (const auto blocks = live_count_->on_time(now_ns)) pending_.emplace_back(*blocks);
}

void AllocTracer::look(std::uint64_t now_ns) {
    ended_.clear();
    watch_->look(now_ns, ended_);
    pending_.insert(pending_.end(), ended_.begin(), ended_.end());
    deliver(false);
}

/// While the target's memory is still there.
void AllocTracer::look_last() {
    if (looked_last_) return;
    looked_last_ = true;
    ended_.clear();
    std::vector<trace::Unseen> unseen;
    watch_->look_last(ended_, unseen);
    pending_.insert(pending_.end(), ended_.begin(), ended_.end());
    pending_.insert(pending_.end(), unseen.begin(), unseen.end());
    if (const auto blocks = live_count_->last()) pending_.emplace_back(*blocks);
}

void AllocTracer::take(const TraceEvent& event, std::vector<python::RawFrame>& frames) {
    switch (event.type) {
        case TraceEventType::alloc:
            take_alloc(event, frames);
            return;
        case TraceEventType::content:
            watch_->set_content(event.address, event.window, event.content);
            return;
        case TraceEventType::free:
            if (event.size_bytes == 0) watch_->forget(event.address);
            pending_.emplace_back(
                trace::Free{event.time_ns, pid_, event.tid, event.address, event.size_bytes});
            return;
        case TraceEventType::window:
            take_window(event, frames);
            return;
        case TraceEventType::child:
            sink_.child_forked(event.tid);
            return;
        case TraceEventType::exec:
            exec_seen_ = true;
            watch_->lose_target();
            live_count_->lose_target();
            sink_.exec_seen(pid_);
            return;
        case TraceEventType::ending:
            ending_ = true;
            return;
    }
}

void AllocTracer::take_alloc(const TraceEvent& event, std::vector<python::RawFrame>& frames) {
    PendingAlloc pending;
    trace::Alloc& alloc = pending.alloc;
    alloc.time_ns = event.time_ns;
    alloc.pid = pid_;
    alloc.tid = event.tid;
    alloc.address = event.address;
    alloc.size_bytes = event.size_bytes;
    alloc.sampling_bytes = event.sampling_bytes;
    alloc.window = event.window;
    alloc.kind = event.kind;
    if (frames.empty()) {
        pending.stack = native_stack(event.caller);
    } else {
        pending.stack = resolve(event, frames);
    }
    pending_.emplace_back(pending);
    watch_->add(alloc);
}

AllocSink::StackId AllocTracer::resolve(const TraceEvent& event, std::vector<python::RawFrame>& frames) {
    raw_.frames.swap(frames);
    raw_.truncated = event.stack_truncated;
    raw_.broken = event.stack_broken;
    stack_.clear();
    codes_.resolve(raw_, stack_, loss_);
    return sink_.intern_stack(stack_);
}

void AllocTracer::take_window(const TraceEvent& event, std::vector<python::RawFrame>& frames) {
    trace::Window window;
    window.id = event.window;
    window.pid = pid_;
    window.kind = event.kind;
    window.start_ns = event.time_ns;
    window.end_ns = event.address;
    window.own_ns = event.own_ns;
    window.span_own_ns = event.span_own_ns;
    window.own_spread = event.own_spread;
    if (window.id != 0 || !finished_)
        watch_->window_over(window.kind, window.id, window.end_ns, base::monotonic_ns());
    if (window.id == 0) {
        pending_.emplace_back(window);
        return;
    }
    Batch& batch = batches_.at(static_cast<std::size_t>(window.kind));
    if (batch.windows.empty()) batch.due_ns = base::monotonic_ns() + kBatchNs;
    batch.windows.push_back(window);
    if (!frames.empty()) batch.stacks[window.id] = resolve(event, frames);
    if (batch.windows.size() >= kBatch) hand_on(batch);
}

void AllocTracer::hand_on(Batch& batch) {
    std::vector<trace::Window> windows = std::exchange(batch.windows, {});
    share_spans(windows);
    spread(windows, batch);
    batch.stacks.clear();
    for (const trace::Window& window : windows) {
        const double fraction =
            window.span_own_ns == 0
                ? 1
                : std::min(1.0, static_cast<double>(window.own_ns) / static_cast<double>(window.span_own_ns));
        window_fraction_[window_key(window.id, window.kind)] = fraction;
        pending_.emplace_back(window);
    }
}

/// Those of which it is known where they began.
void AllocTracer::spread(std::vector<trace::Window>& windows, const Batch& batch) {
    std::vector<AllocSink::PlacedWindow> placed;
    for (const trace::Window& window : windows) {
        const auto stack = batch.stacks.find(window.id);
        if (stack != batch.stacks.end()) placed.push_back({window, stack->second});
    }
    sink_.spread(placed);
    auto next = placed.begin();
    for (trace::Window& window : windows) {
        if (next == placed.end()) break;
        if (next->window.id == window.id) window = next++->window;
    }
}

/// Hands on what is complete, in order. `all`: what still waits for its window at the end is dropped: its
/// weight is not known.
void AllocTracer::deliver(bool all) {
    for (; !pending_.empty(); pending_.pop_front()) {
        Pending& next = pending_.front();
        if (auto* pending = std::get_if<PendingAlloc>(&next)) {
            if (pending->alloc.window != 0) {
                const auto fraction =
                    window_fraction_.find(window_key(pending->alloc.window, pending->alloc.kind));
                if (fraction == window_fraction_.end()) {
                    if (!all) return;
                    ++loss_[trace::Loss::lost_events];
                    continue;
                }
                if (fraction->second <= 0) continue;
                pending->alloc.armed_fraction = fraction->second;
            }
            sink_.add(pending->alloc, pending->stack);
        } else if (const auto* free = std::get_if<trace::Free>(&next)) {
            sink_.add(*free);
        } else if (const auto* window = std::get_if<trace::Window>(&next)) {
            sink_.add(*window);
        } else if (const auto* unseen = std::get_if<trace::Unseen>(&next)) {
            sink_.add(*unseen);
        } else if (const auto* blocks = std::get_if<trace::LiveBlocks>(&next)) {
            sink_.add(*blocks);
        }
    }
    if (window_fraction_.size() > 4096) window_fraction_.clear();
}

std::string AllocTracer::module_of(std::uint64_t address) {
    const process::Mapping* mapping = maps_.find(base::Address(address));
    return mapping == nullptr ? std::string() : mapping->path;
}

/// A thread that runs no Python: what is known is which module asked for the memory.
AllocSink::StackId AllocTracer::native_stack(std::uint64_t caller) {
    const std::string module = module_of(caller);
    const auto found = native_stacks_.find(module);
    if (found != native_stacks_.end()) return found->second;
    const trace::Stack stack = {{functions_.intern({"<native>", module, 0, trace::FunctionKind::native}), 0}};
    const AllocSink::StackId id = sink_.intern_stack(stack);
    native_stacks_.emplace(module, id);
    return id;
}

void AllocTracer::finish() {
    if (finished_) return;
    finished_ = true;
    drain();
    process_->stop();
    drain();
    look_last();
    for (Batch& batch : batches_) hand_on(batch);
    deliver(true);
    const PatchTable& patches = process_->shared().patches;
    std::vector<std::uint64_t> pages;
    for (std::uint32_t i = 0; i < patches.page_count.load(); ++i) pages.push_back(patches.pages[i].load());
    if (!exec_seen_ && !ending_) text_verified_ = text_equals_files(pid_, pages);
    loss_[trace::Loss::lost_events] += process_->shared().ring.lost() + process_->shadow().ring.lost();
}

std::uint64_t AllocTracer::samples() const {
    return process_->shared().figures.samples.load(std::memory_order_relaxed) +
           process_->shadow().samples.load(std::memory_order_relaxed);
}

AllocTracerStats AllocTracer::stats() const {
    const TraceFigures& figures = process_->shared().figures;
    AllocTracerStats out;
    out.hits = figures.hits.load();
    out.samples = samples();
    out.unknown_frees = figures.unknown_frees.load();
    out.stopped_s = static_cast<double>(figures.stopped_ns.load()) / 1e9;
    out.longest_stop_us = static_cast<double>(figures.longest_stop_ns.load()) / 1e3;
    out.overhead_pct = 100 * figures.overhead.load();
    out.coverage_malloc = figures.coverage_malloc.load();
    out.coverage_object = figures.coverage_object.load();
    out.coverage_large = figures.coverage_large.load();
    out.large_from_bytes = figures.large_from_bytes.load();
    out.text_verified = text_verified_;
    out.watch = watch_->figures();
    out.has_objects = !sites_.object_name.empty();
    out.allocator = sites_.malloc_name;
    if (!sites_.object_name.empty()) out.allocator += " and " + sites_.object_name;
    out.notes = sites_.notes;
    out.loss = loss_;
    if (process_->died()) {
        out.notes.push_back(fmt::format(
            "the tracing process was killed; {} places in the target were repaired", process_->repaired()));
    }
    constexpr double kNearlyAll = 0.9;
    const bool has_large = out.large_from_bytes != 0 && out.coverage_large > kNearlyAll;
    const std::string rare = has_large
                                 ? fmt::format("rare blocks below {} KB", (out.large_from_bytes + 500) / 1000)
                                 : std::string("rare large blocks");
    if (2 * figures.malloc_dense.load() > figures.malloc_windows.load()) {
        out.notes.push_back(fmt::format(
            "it allocates faster than breakpoints can follow: bytes are rough, and {} may have been missed",
            rare));
    } else if (2 * figures.object_dense.load() > figures.object_windows.load()) {
        out.notes.emplace_back(
            "small objects come faster than breakpoints can follow: their bytes are rough, those of larger "
            "blocks are not");
    }
    constexpr double kFew = 0.1;
    if (figures.malloc_windows.load() > 0 && out.coverage_malloc < kFew) {
        out.notes.push_back(fmt::format(
            "malloc went by windows: lines that allocate seldom, {} among many small ones, may have been "
            "missed",
            has_large ? rare : "a few large blocks"));
    }
    // What a handful of windows didn't meet has no part in how far they differ either.
    constexpr std::uint64_t kFewWindows = 30;
    const auto say_if_few = [&](std::uint64_t windows, const char* what) {
        if (windows < kFewWindows) out.few_windows.push_back({what, windows});
    };
    if (figures.object_windows.load() > 0)
        say_if_few(figures.object_windows.load(),
                   sites_.object_name.starts_with("mimalloc") ? "Python's allocations" : "small objects");
    if (out.hits > 0 && out.coverage_malloc < kFew)
        say_if_few(figures.malloc_windows.load(), "allocations by malloc");
    if (out.large_from_bytes != 0 && out.coverage_large < kFew && figures.large_windows.load() > 0)
        say_if_few(figures.large_windows.load(), "large blocks");
    // Each of them stops the process twice, whatever the budget is.
    constexpr double kManyThreads = 100;
    const double own_s = static_cast<double>(figures.own_ns.load()) / 1e9;
    const double threads = static_cast<double>(figures.threads_started.load()) / std::max(own_s, 1.0);
    if (threads > kManyThreads) {
        out.notes.push_back(
            fmt::format("it starts {:.0f} threads a second of its run time, and each start stops it twice: "
                        "--max-overhead can't bound that (--cpu doesn't stop it)",
                        threads));
    }
    if (const auto lost = figures.lost_returns.load(); lost != 0) {
        out.notes.push_back(fmt::format("{} sampled allocations were not seen to return", lost));
    }
    return out;
}

}  // namespace memattach::probe
