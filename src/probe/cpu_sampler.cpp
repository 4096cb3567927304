#include "memattach/probe/cpu_sampler.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/process/proc.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
/// How much later than its due time a hidden (kernel-mode) sample is looked for: time for a record to arrive.
constexpr std::uint64_t kHiddenSlackNs = 60'000;
/// A sleeping thread's CPU clock is looked at no more often than this for hidden samples.
constexpr std::uint64_t kHiddenIdleNs = 5 * kMs;
constexpr std::uint64_t kStatesMinAgeNs = 5 * kMs;
constexpr std::uint64_t kLabelPeriodNs = 500'000;

}  // namespace

struct CpuSampler::Thread {
    explicit Thread(int pid, int tid_) : tid(tid_), files(pid, tid_) {}

    int tid;
    TaskFiles files;
    PerfEvent perf;
    base::Address state;
    std::uint64_t state_sought_ns = 0;

    python::RawStack raw, last_raw;
    std::optional<CpuSink::StackId> last_stack;  ///< of last_raw
    bool named = false;
    bool gone = false;

    // Event-driven, user side only: where on its CPU clock the next sample is due, and when to look.
    std::uint64_t next_sample_cpu_ns = 0;
    std::uint64_t check_ns = kNever;

    // Ticks with perf: on a CPU by the last switch record, and the sample that waits for a label.
    std::optional<bool> on_cpu;
    std::optional<PerfSample> label;
    std::optional<std::pair<trace::CpuSample, CpuSink::StackId>> pending;
};

/// What one reading of a thread's ring brought.
struct CpuSampler::Burst {
    std::uint64_t samples = 0;
    PerfSample last;
    std::vector<int> new_threads;
    std::vector<int> new_processes;
    bool exited = false;
    bool exec = false;
};

CpuSampler::CpuSampler(int pid, const python::Runtime& runtime, const process::Memory& memory,
                       trace::FunctionTable& functions, const CpuOptions& options, CpuSink& sink,
                       Poller& poller)
    : pid_(pid),
      options_(options),
      sink_(sink),
      reader_(memory, runtime, pid),
      functions_(functions),
      codes_(memory, runtime, functions),
      regions_(pid, runtime),
      perf_(probe_perf(pid)),
      event_driven_(perf_.allowed && options.rate_hz <= kEventRateLimitHz),
      period_ns_(static_cast<std::uint64_t>(1e9 / options.rate_hz)),
      late_limit_ns_(std::clamp<std::uint64_t>(period_ns_, kMs, 10 * kMs)),
      ticks_(base::monotonic_ns(), options.rate_hz),
      ticking_(!event_driven_ || options.idle),
      poller_(poller) {
    perf_options_.exclude_kernel = !perf_.kernel_visible;
    perf_options_.period_ns = event_driven_ ? period_ns_ : std::max(period_ns_, kLabelPeriodNs);
    perf_options_.wake = event_driven_;
    perf_options_.switches = !event_driven_;
    perf_options_.ring_pages = event_driven_ ? 1 : 4;
    refresh_threads(base::monotonic_ns());
}

CpuSampler::~CpuSampler() = default;

std::vector<std::string> CpuSampler::notes() const {
    std::vector<std::string> notes;
    if (!perf_.allowed)
        notes.push_back(
            fmt::format("no Python/native/system split: {} (--blocking works without)", perf_.why_not));
    if (threads_without_perf_ > 0)
        notes.push_back(fmt::format("{} threads were sampled by timer, without a split: {}",
                                    threads_without_perf_, base::errno_text(perf_errno_)));
    return notes;
}

// ---- threads ----------------------------------------------------------------------------------------------

void CpuSampler::refresh_threads(std::uint64_t now_ns) {
    next_refresh_ns_ = now_ns + (event_driven_ ? 1000 : 100) * kMs;
    const std::vector<int> tids = process::list_threads(pid_);
    if (tids.empty()) return;  // The session notices that it is gone.
    for (auto& [tid, thread] : threads_) thread->gone = true;
    bool added = false;
    for (const int tid : tids) {
        const auto found = threads_.find(tid);
        if (found != threads_.end()) {
            found->second->gone = false;
        } else {
            added |= add_thread(tid) != nullptr;
        }
    }
    std::vector<int> ended;
    for (const auto& [tid, thread] : threads_)
        if (thread->gone) ended.push_back(tid);
    for (const int tid : ended) remove_thread(tid);
    if (added || now_ns - states_read_ns_ > 1000 * kMs) map_states(now_ns);
}

void CpuSampler::map_states(std::uint64_t now_ns) {
    states_read_ns_ = now_ns;
    states_.clear();
    for (const python::ThreadState& state : reader_.threads())
        if (state.tid != 0) states_[state.tid] = state.address;
    for (auto& [tid, thread] : threads_) {
        const auto found = states_.find(tid);
        thread->state = found == states_.end() ? base::Address() : found->second;
    }
}

CpuSampler::Thread* CpuSampler::add_thread(int tid) {
    if (threads_.contains(tid)) return nullptr;
    auto thread = std::make_unique<Thread>(pid_, tid);
    if (perf_.allowed) {
        const int error = thread->perf.open(tid, perf_options_);
        if (error == ESRCH) return nullptr;
        if (error != 0) {
            ++threads_without_perf_;
            perf_errno_ = error;
            ticking_ = true;
        } else if (event_driven_) {
            poller_.add(thread->perf.fd(), *this, static_cast<std::uint64_t>(tid));
            if (perf_options_.exclude_kernel) {
                thread->next_sample_cpu_ns = period_ns_;
                thread->check_ns = base::monotonic_ns() + period_ns_ + kHiddenSlackNs;
                next_check_ns_ = std::min(next_check_ns_, thread->check_ns);
            }
        }
    }
    const auto state = states_.find(tid);
    if (state != states_.end()) thread->state = state->second;
    Thread* result = thread.get();
    threads_.emplace(tid, std::move(thread));
    return result;
}

void CpuSampler::remove_thread(int tid) {
    const auto found = threads_.find(tid);
    if (found == threads_.end()) return;
    flush_pending(*found->second);
    if (event_driven_ && found->second->perf.is_open()) poller_.remove(found->second->perf.fd());
    threads_.erase(found);
    states_.erase(tid);
}

// ---- records ----------------------------------------------------------------------------------------------

void CpuSampler::read_records(Thread& thread, Burst& burst) {
    const std::uint64_t lost = thread.perf.drain([&](const PerfRecord& record) {
        if (const auto* sample = std::get_if<PerfSample>(&record)) {
            ++burst.samples;
            burst.last = *sample;
        } else if (const auto* change = std::get_if<PerfSwitch>(&record)) {
            thread.on_cpu = !change->out;
        } else if (const auto* fork = std::get_if<PerfFork>(&record)) {
            (fork->pid == pid_ ? burst.new_threads : burst.new_processes)
                .push_back(fork->pid == pid_ ? fork->tid : fork->pid);
        } else if (const auto* exit = std::get_if<PerfExit>(&record)) {
            burst.exited |= exit->tid == thread.tid;
        } else if (const auto* comm = std::get_if<PerfComm>(&record)) {
            burst.exec |= comm->exec;
            thread.named = false;
        }
    });
    if (lost > 0) {
        losses_[trace::Loss::lost_events] += lost;
        thread.on_cpu.reset();
    }
}

void CpuSampler::act_on(const Burst& burst) {
    for (const int tid : burst.new_threads) add_thread(tid);
    for (const int pid : burst.new_processes) sink_.child_started(pid);
    if (burst.exec) sink_.exec_called(pid_);
}

trace::CpuMode CpuSampler::mode_of(const PerfSample& sample) const {
    return sample.kernel_mode ? trace::CpuMode::system : regions_.mode_of(base::Address(sample.ip));
}

// ---- event-driven -----------------------------------------------------------------------------------------

void CpuSampler::on_ready(std::uint64_t token, bool hangup) {
    const int tid = static_cast<int>(token);
    serve_event(tid);
    if (hangup) remove_thread(tid);
}

void CpuSampler::serve_event(int tid) {
    const auto found = threads_.find(tid);
    if (found == threads_.end()) return;
    Thread& thread = *found->second;
    Burst burst;
    read_records(thread, burst);
    if (burst.samples > 0) {
        const std::uint64_t now = base::monotonic_ns();
        losses_[trace::Loss::missed_samples] += burst.samples - 1;
        if (perf_options_.exclude_kernel) {
            thread.next_sample_cpu_ns = burst.last.cpu_ns + period_ns_;
            thread.check_ns = burst.last.time_ns + period_ns_ + kHiddenSlackNs;
            next_check_ns_ = std::min(next_check_ns_, thread.check_ns);
        }
        if (now - burst.last.time_ns > late_limit_ns_ && now > burst.last.time_ns) {
            ++losses_[trace::Loss::missed_samples];
        } else {
            trace::CpuSample sample{burst.last.time_ns, pid_, tid, true, false, mode_of(burst.last)};
            if (const auto stack = look(thread, sample, burst.last.kernel_mode ? 0 : burst.last.ip))
                give(thread, sample, *stack);
        }
    }
    act_on(burst);
    if (burst.exited) remove_thread(tid);
}

/// Looks whether the thread's CPU clock has passed a sampling point that left no record: then it was in the
/// kernel, where we may not look.
void CpuSampler::check_hidden(Thread& thread, std::uint64_t now_ns) {
    if (thread.perf.has_records()) {  // The event will be served in a moment, and plans the next check.
        thread.check_ns = now_ns + period_ns_;
        return;
    }
    const auto cpu = thread.perf.read_cpu_ns();
    if (!cpu) {
        thread.check_ns = kNever;
        return;
    }
    // Between reading the clock and now a record may have come after all.
    if (*cpu >= thread.next_sample_cpu_ns + kHiddenSlackNs / 2 && !thread.perf.has_records()) {
        const std::uint64_t passed = (*cpu - thread.next_sample_cpu_ns) / period_ns_ + 1;
        thread.next_sample_cpu_ns += passed * period_ns_;
        losses_[trace::Loss::missed_samples] += passed - 1;
        trace::CpuSample sample{now_ns, pid_, thread.tid, true, false, trace::CpuMode::system};
        if (const auto stack = look(thread, sample, 0)) give(thread, sample, *stack);
    }
    const std::uint64_t remaining =
        thread.next_sample_cpu_ns > *cpu ? thread.next_sample_cpu_ns - *cpu : period_ns_;
    thread.check_ns = now_ns + std::max(remaining, std::min(period_ns_ / 2, kHiddenIdleNs)) + kHiddenSlackNs;
}

// ---- ticks ------------------------------------------------------------------------------------------------

std::uint64_t CpuSampler::due_ns() const {
    return std::min({ticking_ ? ticks_.due_ns() : kNever, next_refresh_ns_, next_check_ns_});
}

void CpuSampler::on_time(std::uint64_t now_ns) {
    if (ticking_ && now_ns >= ticks_.due_ns()) serve_tick(now_ns);
    if (now_ns >= next_check_ns_) {
        next_check_ns_ = kNever;
        for (auto& [tid, thread] : threads_) {
            if (now_ns >= thread->check_ns) check_hidden(*thread, now_ns);
            next_check_ns_ = std::min(next_check_ns_, thread->check_ns);
        }
    }
    if (now_ns >= next_refresh_ns_) refresh_threads(now_ns);
}

void CpuSampler::serve_tick(std::uint64_t now_ns) {
    losses_[trace::Loss::missed_samples] += ticks_.serve(now_ns);
    Burst burst;
    std::vector<int> ended;
    for (auto& [tid, thread] : threads_) {
        if (event_driven_ && thread->perf.is_open()) {
            if (!options_.idle) continue;
        } else if (thread->perf.is_open()) {
            burst.exited = false;
            burst.samples = 0;
            if (thread->perf.has_records()) read_records(*thread, burst);
            if (burst.samples > 0) thread->label = burst.last;
            if (burst.exited) ended.push_back(tid);
        }
        poll_thread(*thread, now_ns);
    }
    act_on(burst);
    for (const int tid : ended) remove_thread(tid);
}

void CpuSampler::poll_thread(Thread& thread, std::uint64_t now_ns) {
    std::optional<bool> running = thread.on_cpu;
    if (!running) {
        running = thread.files.is_running();
        if (!running) return;
        if (perf_options_.switches && thread.perf.is_open()) thread.on_cpu = running;
    }
    if (event_driven_ && thread.perf.is_open() && *running) return;  // its own clock takes that one
    if (!*running && !options_.idle) {
        flush_pending(thread);
        thread.label.reset();
        return;
    }
    trace::CpuSample sample{base::monotonic_ns(), pid_, thread.tid, *running, false, trace::CpuMode::unknown};
    static_cast<void>(now_ns);
    const auto stack =
        look(thread, sample, thread.label && !thread.label->kernel_mode ? thread.label->ip : 0);
    // A label goes to the sample nearest in time, which is this one or the one before.
    if (thread.label && thread.pending) {
        const std::uint64_t at = thread.label->time_ns;
        trace::CpuSample& before = thread.pending->first;
        const std::uint64_t to_before = at > before.time_ns ? at - before.time_ns : 0;
        const std::uint64_t to_this = sample.time_ns > at ? sample.time_ns - at : 0;
        if (to_before <= to_this) {
            before.mode = mode_of(*thread.label);
            thread.label.reset();
        }
    }
    flush_pending(thread);
    if (!stack) return;
    if (thread.label && *running) sample.mode = mode_of(*thread.label);
    thread.label.reset();
    if (thread.perf.is_open() && *running && sample.mode == trace::CpuMode::unknown)
        thread.pending.emplace(sample, *stack);
    else
        give(thread, sample, *stack);
}

void CpuSampler::flush_pending(Thread& thread) {
    if (!thread.pending) return;
    give(thread, thread.pending->first, thread.pending->second);
    thread.pending.reset();
}

// ---- looking ----------------------------------------------------------------------------------------------

std::optional<CpuSink::StackId> CpuSampler::look(Thread& thread, trace::CpuSample& sample, std::uint64_t ip) {
    if (thread.state.is_null()) {
        // A thread that is new to us, or that runs no Python at all; ask less and less often.
        const std::uint64_t now = base::monotonic_ns();
        if (now - thread.state_sought_ns > 100 * kMs && now - states_read_ns_ > kStatesMinAgeNs)
            map_states(now);
        thread.state_sought_ns = now;
        if (thread.state.is_null()) return native_stack(thread, ip);
    }
    switch (reader_.walk(thread.state, thread.raw)) {
        case python::WalkStatus::consistent:
            break;
        case python::WalkStatus::torn:
            ++losses_[trace::Loss::torn_stacks];
            return std::nullopt;
        case python::WalkStatus::no_frames:
            return native_stack(thread, ip);
        case python::WalkStatus::gone:
            ++losses_[trace::Loss::gone_threads];
            thread.state = base::Address();
            states_.erase(thread.tid);
            return std::nullopt;
    }
    const auto holder = reader_.gil_holder();
    sample.holds_gil = holder && *holder == thread.state;
    if (thread.last_stack && thread.raw.frames == thread.last_raw.frames &&
        thread.raw.truncated == thread.last_raw.truncated && thread.raw.broken == thread.last_raw.broken)
        return thread.last_stack;
    codes_.resolve(thread.raw, stack_, losses_);
    thread.last_stack = sink_.intern(stack_);
    std::swap(thread.raw, thread.last_raw);
    return thread.last_stack;
}

std::optional<CpuSink::StackId> CpuSampler::native_stack(Thread& thread, std::uint64_t ip) {
    static_cast<void>(thread);
    const std::string module = ip == 0 ? std::string() : regions_.module_of(base::Address(ip));
    const auto found = native_stacks_.find(module);
    if (found != native_stacks_.end()) return found->second;
    const trace::Stack stack = {{functions_.intern({"<native>", module, 0, trace::FunctionKind::native}), 0}};
    return native_stacks_.emplace(module, sink_.intern(stack)).first->second;
}

void CpuSampler::give(Thread& thread, const trace::CpuSample& sample, CpuSink::StackId stack) {
    if (!thread.named) {
        thread.named = true;
        sink_.name_thread(pid_, thread.tid, thread.files.name());
    }
    sink_.add(sample, stack);
}

void CpuSampler::finish() {
    if (finished_) return;
    finished_ = true;
    for (auto& [tid, thread] : threads_) {
        flush_pending(*thread);
        const std::string name = thread->files.name();
        if (!name.empty()) sink_.name_thread(pid_, tid, name);
    }
}

}  // namespace memattach::probe
