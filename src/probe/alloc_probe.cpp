#include "memattach/probe/alloc_probe.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/probe/pymalloc_block.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kReturnTag = ~std::uint64_t{0};
constexpr std::size_t kMaxCallsPerThread = 16;
constexpr std::size_t kMaxReturnPoints = 65536;

}  // namespace

AllocProbe::AllocProbe(pid_t pid, const process::Memory& memory, const python::Runtime& runtime,
                       const SiteMap& sites, std::vector<PlannedSite> planned,
                       const AllocProbeOptions& options, TraceShared& shared, int notify_fd, Shadow& shadow)
    : pid_(pid),
      memory_(memory),
      map_(sites),
      options_(options),
      shared_(shared),
      notify_fd_(notify_fd),
      shadow_(shadow),
      runtime_(runtime),
      reader_(memory, runtime, pid),
      thread_states_(memory, runtime, reader_),
      sampler_(options.seed),
      random_(options.seed + 2),
      sites_(std::move(planned)),
      maps_(pid) {
    live_.reserve(1 << 16);
    return_points_.reserve(4096);
    find_large();
}

void AllocProbe::start(Tracer& tracer) {
    tracer_ = &tracer;
    SchedulePolicy policy;
    policy.max_overhead = options_.max_overhead;
    policy.threshold_bytes = options_.threshold_bytes;
    policy.seed = options_.seed;
    // The first walk of a stack costs a hundred times as much as the next: that is done before anybody waits.
    for (const python::ThreadState& state : reader_.threads()) {
        if (reader_.walk(state.address, raw_) == python::WalkStatus::gone) continue;
    }
    const std::uint64_t now_ns = base::monotonic_ns();
    thread_states_.refresh(now_ns);
    policy.has_large = large_.has_value();
    schedule_.emplace(policy, moment(now_ns));
    at_start_ = process::read_stat(pid_);
    keep_user_share(moment(now_ns));
    apply_plan(now_ns);
}

void AllocProbe::finish() {
    if (!schedule_) return;
    for (const auto kind : kKinds) set_armed(kind, Armed::nothing);
    schedule_->finish(moment(base::monotonic_ns(), schedule_->is_timing()));
    send_windows();
    publish_figures();
    notify(base::monotonic_ns(), true);
}

void AllocProbe::on_time(std::uint64_t now_ns, bool& keep_running) {
    shared_.heartbeat_ns.store(now_ns, std::memory_order_relaxed);
    if (shared_.finish_asked.load(std::memory_order_acquire) != 0) keep_running = false;
    if (getppid() != shared_.analyser_pid.load(std::memory_order_relaxed)) keep_running = false;
    if (keep_running && now_ns >= plan_.wake_ns) apply_plan(now_ns);
    end_tails(now_ns);
    thread_states_.keep_up(now_ns);
    notify(now_ns, false);
    constexpr std::uint64_t kPublishNs = 20'000'000;
    if (now_ns - published_ns_ > kPublishNs) {
        published_ns_ = now_ns;
        publish_figures();
    }
}

std::uint64_t AllocProbe::due_ns() const {
    std::uint64_t due_ns = plan_.wake_ns;
    for (const Tail& tail : tails_)
        if (tail.is_watched()) due_ns = std::min(due_ns, tail.until_ns);
    return due_ns;
}

/// It runs on the target's processor, and takes away from it as much as the target would have run meanwhile.
void AllocProbe::charge_work(Moment now) {
    const double work_ns = tracer_->take_work_ns();
    const Moment before = std::exchange(charged_, now);
    if (before.wall_ns == 0 || now.wall_ns <= before.wall_ns) return;
    const double ran = static_cast<double>(now.cpu_ns - std::min(before.cpu_ns, now.cpu_ns)) /
                       static_cast<double>(now.wall_ns - before.wall_ns);
    schedule_->work(work_ns * std::min(1.0, ran));
}

/// How much of its own time the target is outside of the kernel. What it does there a shadow doesn't: page
/// faults, system calls. Of ticks of 10 ms; before there are enough of them, of its life so far.
void AllocProbe::keep_user_share(Moment now) {
    constexpr std::uint64_t kEveryNs = 200'000'000;
    constexpr double kTickNs = 10e6, kPriorTicks = 30;
    if (now.wall_ns - share_read_ns_ < kEveryNs || !at_start_) return;
    share_read_ns_ = now.wall_ns;
    const auto present = process::read_stat(pid_);
    if (!present) return;
    const auto before_user = static_cast<double>(at_start_->user_ticks);
    const auto before_system = static_cast<double>(at_start_->system_ticks);
    const double prior = (before_user + 1) / (before_user + before_system + 1);
    const double user = static_cast<double>(present->user_ticks) - before_user;
    const double stops = schedule_->burnt_ns() / kTickNs;
    const double system = std::max(0.0, static_cast<double>(present->system_ticks) - before_system - stops);
    schedule_->set_user_share((user + kPriorTicks * prior) / (user + system + kPriorTicks));
}

bool AllocProbe::wants_null_trap() {
    return schedule_->wants_null_trap();
}

void AllocProbe::on_null_trap(std::uint64_t thread_ns, std::uint64_t wall_ns) {
    schedule_->null_trap(hit_.kind, thread_ns, wall_ns, !hit_.sampled);
}

void AllocProbe::on_resumed(std::uint64_t stopped_ns, bool hit) {
    if (!schedule_) return;
    if (hit && hit_counts_) {
        hit_.stopped_ns = stopped_ns;
        schedule_->hit(hit_);
    } else {
        schedule_->other_stop(hit_.kind, stopped_ns);
    }
    hit_counts_ = false;
}

void AllocProbe::on_hit(pid_t tid, std::uint64_t address, std::uint64_t tag, const user_regs_struct& regs) {
    if (tag == kReturnTag) {
        on_return(tid, address, regs);
    } else if (tag < sites_.size()) {
        on_entry(tid, tag, regs);
        // A site may also be where another call returns to: no compiler does that, so it isn't looked for.
    }
}

void AllocProbe::on_entry(pid_t tid, std::size_t index, const user_regs_struct& regs) {
    if (sites_[index].site.group == trace::AllocKind::large) {
        on_large(tid, regs);
        return;
    }
    const PlannedSite& planned = sites_[index];
    const Site& site = planned.site;
    const std::uint64_t slot = regs.rsp + planned.point.return_slot_bytes;
    hit_ = {};
    hit_.kind = site.group;
    hit_counts_ = true;
    shared_.figures.hits.fetch_add(1, std::memory_order_relaxed);
    ThreadCalls& thread = threads_[tid];
    drop_stale(thread, slot);
    const LastHit last = thread.last;
    thread.last = {index, slot, 0};
    if (schedule_->group(site.group).is_windowed() && !in_window(site.group)) {
        hit_counts_ = false;
        on_tail_hit(site, tid, regs);
        return;
    }
    if (site.kind == SiteKind::release) {
        release(tid, argument(site.args.old, regs), 0);
        return;
    }
    if (site.kind == SiteKind::release_range) {
        release(tid, argument(site.args.old, regs), argument(site.args.size, regs));
        return;
    }
    // glibc's realloc(NULL, n) jumps to malloc: the same call, seen by a second site. pymalloc's functions
    // jump to malloc's as well, with what they didn't count.
    const bool may_be_passed_on = last.site != index && last.stack_pointer == slot &&
                                  sites_[last.site].site.kind == SiteKind::reallocate &&
                                  sites_[last.site].site.group == site.group;
    const auto asked = requested_bytes(site, regs);
    if (!asked) return;
    if (maps_a_file(site, regs)) return;
    const bool elsewhere =
        (site.limit_bytes != 0 && *asked > site.limit_bytes) || is_larges(site, *asked, regs);
    const std::uint64_t size = own_bytes(site, *asked);
    Call call;
    if (site.kind == SiteKind::reallocate || site.kind == SiteKind::reallocate_mapping) {
        const std::uint64_t old = argument(site.args.old, regs);
        if (live_.count(old) != 0 || live_mappings_.count(old) != 0) call.old = old;
    }
    const double sampling_bytes = schedule_->group(site.group).sampling_bytes();
    if (!elsewhere) {
        hit_.size_bytes = size;
        call.kept = (size != 0 || site.kind == SiteKind::allocate) && sampler_.keep(size, sampling_bytes);
    }
    // Reading the return address costs as much as all the rest of an ordinary hit in here.
    const bool reallocates = site.kind == SiteKind::reallocate;
    if (!call.kept && call.old == 0 && !reallocates) return;
    // pymalloc's realloc leaves a block that it didn't serve to malloc's, which has a site of its own.
    if (reallocates && site.limit_bytes != 0 && (call.kept || call.old != 0)) {
        const std::uint64_t old = argument(site.args.old, regs);
        if (old != 0 && !is_pymalloc_block(memory_, base::Address(old))) return;
    }
    const auto return_address = Tracer::peek(tid, slot);
    if (!return_address) return;
    thread.last.return_address = *return_address;
    if (may_be_passed_on && last.return_address == *return_address) return;
    if (from_inside(map_, site, *return_address)) return;
    if (is_interpreters_own(map_, site, regs, *return_address)) return;
    if (!call.kept && call.old == 0) return;
    hit_.sampled = call.kept;
    call.site = index;
    call.stack_pointer = slot + 8;
    call.return_address = *return_address;
    call.out = argument(site.args.out, regs);
    call.event.kind = site.group;
    call.event.tid = tid;
    call.event.time_ns = tracer_->stop_start_ns();
    call.event.size_bytes = size;
    call.event.sampling_bytes = sampling_bytes;
    call.event.window = plan_.of(site.group).window;
    call.event.caller = *return_address;
    begin_call(tid, index, regs, std::move(call));
}

void AllocProbe::begin_call(pid_t tid, std::size_t, const user_regs_struct& regs, Call call) {
    auto& calls = threads_[tid].calls;
    if (calls.size() >= kMaxCallsPerThread) {
        shared_.figures.lost_returns.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    auto point = return_points_.find(call.return_address);
    bool is_original = false;
    if (point == return_points_.end()) {
        if (return_points_.size() >= kMaxReturnPoints) return_points_.clear();
        std::array<std::byte, 16> bytes{};
        const std::size_t got = memory_.read_up_to(base::Address(call.return_address), bytes);
        if (got == 0 || bytes[0] == std::byte{0xCC}) {
            shared_.figures.lost_returns.fetch_add(1, std::memory_order_relaxed);
            return;
        }
        point = return_points_
                    .emplace(call.return_address, ReturnPoint{decode(std::span(bytes).first(got)), bytes[0]})
                    .first;
        is_original = true;
    }
    if (call.kept) {
        std::byte now{};
        python::ReadAlong along{{base::Address(call.return_address), std::span(&now, 1)}};
        read_stack(regs, call, along);
        if (along.arrived) is_original = now == point->second.original;
    }
    if (!tracer_->plant(call.return_address, point->second.displaced, point->second.original, kReturnTag,
                        is_original)) {
        return_points_.erase(point);  // the code there may have changed
        shared_.figures.lost_returns.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    calls.push_back(std::move(call));
}

void AllocProbe::read_stack(const user_regs_struct& regs, Call& call, python::ReadAlong& along) {
    raw_.frames.clear();
    raw_.truncated = raw_.broken = false;
    base::Address innermost;
    for (int round = 0; true; ++round) {
        const auto states = thread_states_.find(regs.fs_base, tracer_->stop_start_ns());
        if (states.empty()) return;
        if (reader_.walk(states, raw_, innermost, true, &along) != python::WalkStatus::gone) break;
        thread_states_.forget(regs.fs_base);
        if (round > 0) return;
    }
    call.frames.assign(raw_.frames.begin(), raw_.frames.end());
    call.event.stack_truncated = raw_.truncated;
    call.event.stack_broken = raw_.broken;
}

/// Calls that were left by longjmp or an exception: the thread has its stack pointer above theirs again.
void AllocProbe::drop_stale(ThreadCalls& thread, std::uint64_t stack_pointer) {
    while (!thread.calls.empty() && thread.calls.back().stack_pointer <= stack_pointer) {
        tracer_->remove(thread.calls.back().return_address);
        thread.calls.pop_back();
        shared_.figures.lost_returns.fetch_add(1, std::memory_order_relaxed);
    }
}

void AllocProbe::on_return(pid_t tid, std::uint64_t address, const user_regs_struct& regs) {
    const auto thread = threads_.find(tid);
    if (thread == threads_.end()) return;
    auto& calls = thread->second.calls;
    thread->second.last = {};
    const auto call = std::find_if(calls.rbegin(), calls.rend(), [&](const Call& c) {
        return c.return_address == address && c.stack_pointer == regs.rsp;
    });
    if (call == calls.rend()) return;  // another thread, or an outer call: its turn will come
    hit_.kind = call->event.kind;
    end_call(tid, *call, regs);
    tracer_->remove(address);
    calls.erase(std::next(call).base());
}

void AllocProbe::end_call(pid_t tid, Call& call, const user_regs_struct& regs) {
    const Site& site = sites_[call.site].site;
    std::uint64_t block = regs.rax;
    if (site.kind == SiteKind::allocate_out) {
        block = regs.rax == 0 ? Tracer::peek(tid, call.out).value_or(0) : 0;
    }
    if (block >= kFirstErrorResult) block = 0;
    const bool succeeded = block != 0 || (site.kind == SiteKind::reallocate && call.event.size_bytes == 0);
    if (succeeded && call.old != 0) release(tid, call.old, 0);
    if (call.in_tail && block != 0) tail_block_ends(site.group, tid, block);
    if (!call.kept || block == 0) return;
    call.event.address = block;
    (site.group == trace::AllocKind::mmap ? live_mappings_[block] : live_[block]) = call.event.size_bytes;
    shared_.figures.samples.fetch_add(1, std::memory_order_relaxed);
    send(call.event, call.frames);
    if (call.event.window == 0 || !has_tail(site.group)) return;
    Tail& tail = tail_of(site.group);
    if (tail.window != call.event.window) tail = {call.event.window, {}, 0, 0};
    tail.blocks[block] = call.event.time_ns;
}

/// `size_bytes` 0: the whole block. Blocks that weren't kept are only counted.
void AllocProbe::release(pid_t tid, std::uint64_t block, std::uint64_t size_bytes) {
    TraceEvent event;
    event.type = TraceEventType::free;
    event.tid = tid;
    event.time_ns = tracer_->stop_start_ns();
    event.address = block;
    if (size_bytes != 0) {  // munmap of one or several mappings, or of a part of one
        auto mapping = live_mappings_.upper_bound(block);
        if (mapping != live_mappings_.begin() &&
            std::prev(mapping)->first + std::prev(mapping)->second > block) {
            --mapping;
        }
        bool known = false;
        while (mapping != live_mappings_.end() && mapping->first < block + size_bytes) {
            known = true;
            const bool whole =
                block <= mapping->first && mapping->first + mapping->second <= block + size_bytes;
            mapping = whole ? live_mappings_.erase(mapping) : std::next(mapping);
        }
        event.size_bytes = size_bytes;
        if (known) {
            send(event, {});
        } else {
            shared_.figures.unknown_frees.fetch_add(1, std::memory_order_relaxed);
        }
        return;
    }
    if (live_.erase(block) != 0 || live_mappings_.erase(block) != 0) {
        send(event, {});
    } else if (block != 0) {
        shared_.figures.unknown_frees.fetch_add(1, std::memory_order_relaxed);
    }
}

void AllocProbe::on_thread_end(pid_t tid) {
    if (tid == asked_tid_) {
        asked_tid_ = 0;
        static_cast<void>(schedule_->group(*shadow_of_).copy());
        schedule_->group(*shadow_of_).copied({});
        shadow_of_.reset();
    }
    const auto thread = threads_.find(tid);
    if (thread == threads_.end()) return;
    for (const Call& call : thread->second.calls) tracer_->remove(call.return_address);
    threads_.erase(thread);
}

void AllocProbe::on_child(pid_t child) {
    TraceEvent event;
    event.type = TraceEventType::child;
    event.tid = child;
    event.time_ns = base::monotonic_ns();
    send(event, {});
}

void AllocProbe::on_exec() {
    armed_ = {};
    tails_ = {};
    threads_.clear();
    TraceEvent event;
    event.type = TraceEventType::exec;
    event.time_ns = base::monotonic_ns();
    send(event, {});
}

bool AllocProbe::on_leader_exit() {
    if (exit_announced_) return false;
    exit_announced_ = true;
    TraceEvent event;
    event.type = TraceEventType::ending;
    event.time_ns = base::monotonic_ns();
    send(event, {});
    notify(event.time_ns, true);
    return true;
}

bool AllocProbe::leader_may_go() {
    return shared_.exit_drained.load(std::memory_order_acquire) != 0;
}

void AllocProbe::send(const TraceEvent& event, const std::vector<python::RawFrame>& frames) {
    shared_.ring.write(event, frames);
}

void AllocProbe::notify(std::uint64_t now_ns, bool always) {
    constexpr std::uint64_t kPauseNs = 20'000'000;
    const std::uint64_t waiting = shared_.ring.waiting_bytes();
    if (!always && (waiting == 0 || (waiting < TraceRing::kBytes / 8 && now_ns - notified_ns_ < kPauseNs)))
        return;
    notified_ns_ = now_ns;
    const std::uint64_t one = 1;
    if (::write(notify_fd_, &one, sizeof one) < 0) return;  // full: the reader has been told often enough
}

void AllocProbe::publish_figures() {
    const Moment now = moment(base::monotonic_ns());
    charge_work(now);
    keep_user_share(now);
    const Schedule::Figures figures = schedule_->figures(now);
    TraceFigures& out = shared_.figures;
    const StopStats& stats = tracer_->stats();
    out.stops.store(stats.stops, std::memory_order_relaxed);
    out.steps.store(stats.steps, std::memory_order_relaxed);
    out.threads_started.store(stats.threads_started, std::memory_order_relaxed);
    out.stopped_ns.store(stats.stopped_ns, std::memory_order_relaxed);
    out.longest_stop_ns.store(stats.longest_ns, std::memory_order_relaxed);
    out.null_traps.store(figures.null_traps, std::memory_order_relaxed);
    out.own_ns.store(static_cast<std::uint64_t>(figures.own_ns), std::memory_order_relaxed);
    out.hit_wall_ns.store(static_cast<std::uint64_t>(figures.hit_wall_ns), std::memory_order_relaxed);
    out.hit_cpu_ns.store(static_cast<std::uint64_t>(figures.hit_cpu_ns), std::memory_order_relaxed);
    out.malloc_windows.store(figures.malloc.windows, std::memory_order_relaxed);
    out.malloc_dense.store(figures.malloc.dense_windows, std::memory_order_relaxed);
    out.object_windows.store(figures.object.windows, std::memory_order_relaxed);
    out.object_dense.store(figures.object.dense_windows, std::memory_order_relaxed);
    out.overhead.store(figures.overhead, std::memory_order_relaxed);
    out.coverage_malloc.store(figures.malloc.coverage, std::memory_order_relaxed);
    out.coverage_object.store(figures.object.coverage, std::memory_order_relaxed);
    out.large_windows.store(figures.large_windows, std::memory_order_relaxed);
    out.coverage_large.store(figures.coverage_large, std::memory_order_relaxed);
}

}  // namespace memattach::probe
