#include "memattach/probe/cpu_sampler.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/process/proc.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
/// How much later than its due time a hidden (kernel-mode) sample is looked for: time for a record to arrive.
constexpr std::uint64_t kHiddenSlackNs = 60'000;
/// A thread's CPU clock is looked at no more often than this for hidden samples while it sleeps, and while it
/// runs now and then: what is found late says where the thread was, not where it had been.
constexpr std::uint64_t kHiddenIdleNs = 5 * kMs, kHiddenBusyNs = kMs / 2;
/// A record that is served later than this says nothing about the stack that is read now: the thread has run
/// on.
constexpr std::uint64_t kLateNs = 1 * kMs;
/// Later than this the stack that is read may be another line's than the record's mode: on a busy machine, a
/// loop over three kinds of work of a millisecond each had half of each one's time in another's mode.
constexpr std::uint64_t kFreshNs = 200'000;
/// How often a new sampling period is drawn. It interrupts the thread's CPU, and us until that has answered:
/// some 40 µs each in a virtual machine.
constexpr std::uint64_t kRedrawNs = 64 * kMs;
constexpr std::uint32_t kSampledStackBytes = 8192;
constexpr std::uint64_t kLabelPeriodNs = 500'000;
/// Where ticks need to know who is on a CPU, and events wake us: the ring holds 170 switches, from tick to
/// tick.
constexpr PerfOptions kSwitchesOnly = {
    .period_ns = 0, .wake = false, .tasks = false, .switches = true, .exclude_kernel = true};

}  // namespace

struct CpuSampler::Thread {
    explicit Thread(int pid, int tid_) : tid(tid_), files(pid, tid_) { looked_at.tid = tid_; }

    int tid;
    TaskFiles files;
    PerfEvent perf;
    LookedAt looked_at;
    SampleAllowance allowance;
    bool named = false;
    bool named_by_python = false;
    bool gone = false;

    // Event-driven: the period that the kernel has, and for how many samples. The first one is the rest of a
    // whole one, which comes next (0: it has come).
    std::uint64_t period_ns = 0;
    std::uint64_t whole_period_ns = 0;
    std::uint64_t samples_since_drawn = 0;
    // Event-driven, user side only: where on its CPU clock the next sample is due, and when to look.
    std::uint64_t next_sample_cpu_ns = 0;
    std::uint64_t check_ns = kNever;
    std::uint64_t checked_cpu_ns = 0;

    // Events and ticks: who tells of switches without waking us, and how many ticks the events have taken.
    PerfEvent switches;
    std::uint64_t ticks_taken = 0;

    // Ticks with perf: on a CPU by the last switch record, and the sample that waits for a label.
    std::optional<bool> on_cpu;
    std::uint64_t preempted_ns = 0;  ///< when it was last taken off the CPU while it wanted to go on
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
    std::vector<std::byte> stack;  ///< of the last sample, whose own span ends with the reading
};

CpuSampler::CpuSampler(int pid, const python::Runtime& runtime, const process::Memory& memory,
                       trace::FunctionTable& functions, const CpuOptions& options, CpuSink& sink,
                       Poller& poller)
    : pid_(pid),
      options_(options),
      sink_(sink),
      look_(pid, runtime, memory, functions, options.native, sink, losses_),
      perf_(probe_perf(pid)),
      stopping_(options.blocking || (options.native && !perf_.allowed)),
      event_driven_(perf_.allowed && !stopping_ && options.rate_hz <= kEventRateLimitHz),
      mixed_(event_driven_ && perf_.kernel_visible && !options.native && options.rate_hz > kEventsAloneHz),
      period_ns_(static_cast<std::uint64_t>(1e9 / options.rate_hz)),
      event_period_ns_(mixed_ ? static_cast<std::uint64_t>(1e9 / kLabelledHz) : period_ns_),
      samples_a_draw_((kRedrawNs + event_period_ns_ - 1) / event_period_ns_),
      ticks_(0, options.rate_hz, options.rate_hz <= kEventRateLimitHz, base::monotonic_ns()),
      ticking_(!event_driven_ || mixed_ || options.idle),
      poller_(poller) {
    perf_options_.exclude_kernel = !perf_.kernel_visible;
    perf_options_.period_ns = event_driven_ ? event_period_ns_ : std::max(period_ns_, kLabelPeriodNs);
    perf_options_.wake = event_driven_;
    perf_options_.switches = !event_driven_;
    perf_options_.ring_pages = event_driven_ ? 1 : 4;
    if (options.native && event_driven_) {
        perf_options_.user_stack_bytes = kSampledStackBytes;
        perf_options_.ring_pages = 8;
    }
    refresh_threads(base::monotonic_ns());
}

CpuSampler::~CpuSampler() = default;

std::vector<std::string> CpuSampler::notes() const {
    std::vector<std::string> notes;
    if (!perf_.allowed && !stopping_)
        notes.push_back(
            fmt::format("no Python/native/system split: {} (--blocking works without)", perf_.why_not));
    if (threads_without_perf_ > 0)
        notes.push_back(fmt::format("{} threads were sampled by timer, without a split: {}",
                                    threads_without_perf_, base::errno_text(perf_errno_)));
    look_.add_notes(notes);
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
    if (added || now_ns - look_.states_read_ns() > 1000 * kMs) map_states(now_ns);
}

void CpuSampler::map_states(std::uint64_t now_ns) {
    look_.read_states(now_ns);
    for (auto& [tid, thread] : threads_) thread->looked_at.state = look_.state_of(tid);
}

/// A thread is met in the middle of a period, wherever that is: were the first one always whole, threads that
/// burn less than a period in their life would never be seen. The longer a period, the likelier it is the one
/// that is met, and it may be any of those of its length: then a thread has as many samples as periods, on
/// average, however few.
void CpuSampler::plan_first(Thread& thread) {
    const double whole = std::sqrt(0.25 + 2 * random_.uniform()) * static_cast<double>(event_period_ns_);
    thread.whole_period_ns = static_cast<std::uint64_t>(whole);
    thread.period_ns = std::max<std::uint64_t>(static_cast<std::uint64_t>(whole * random_.uniform()), 10'000);
    thread.samples_since_drawn =
        static_cast<std::uint64_t>(static_cast<double>(samples_a_draw_) * random_.uniform());
}

CpuSampler::Thread* CpuSampler::add_thread(int tid) {
    if (threads_.contains(tid)) return nullptr;
    auto thread = std::make_unique<Thread>(pid_, tid);
    plan_first(*thread);
    if (perf_.allowed && !stopping_) {
        PerfOptions options = perf_options_;
        if (event_driven_) options.period_ns = thread->period_ns;
        const int error = thread->perf.open(tid, options);
        if (error == ESRCH) return nullptr;
        if (error != 0) {
            ++threads_without_perf_;
            perf_errno_ = error;
            ticking_ = true;
        } else if (event_driven_) {
            poller_.add(thread->perf.fd(), *this, static_cast<std::uint64_t>(tid));
            // Where that is refused, /proc tells.
            if (mixed_) static_cast<void>(thread->switches.open(tid, kSwitchesOnly));
            if (perf_options_.exclude_kernel) {
                thread->next_sample_cpu_ns = thread->period_ns;
                thread->check_ns = base::monotonic_ns() + thread->period_ns + kHiddenSlackNs;
                next_check_ns_ = std::min(next_check_ns_, thread->check_ns);
            }
        }
    }
    thread->looked_at.state = look_.state_of(tid);
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
    look_.forget(tid);
}

// ---- records ----------------------------------------------------------------------------------------------

void CpuSampler::read_records(Thread& thread, PerfEvent& event, Burst& burst) {
    const std::uint64_t lost = event.drain([&](const PerfRecord& record) {
        if (const auto* sample = std::get_if<PerfSample>(&record)) {
            ++burst.samples;
            burst.last = *sample;
            burst.stack.assign(sample->stack.begin(), sample->stack.end());
            burst.last.stack = burst.stack;
        } else if (const auto* change = std::get_if<PerfSwitch>(&record)) {
            thread.on_cpu = !change->out;
            thread.preempted_ns = change->out && change->preempted ? change->time_ns : 0;
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
    read_records(thread, thread.perf, burst);
    if (burst.samples > 0) {
        const std::uint64_t now = base::monotonic_ns();
        const bool late = now > burst.last.time_ns + kLateNs;
        // Where there are ticks as well, those make up for it.
        if (!mixed_) losses_[trace::Loss::missed_samples] += burst.samples - (late ? 0 : 1);
        if (!late) {
            const bool fresh = now <= burst.last.time_ns + kFreshNs;
            const auto mode = fresh ? look_.mode_of(burst.last) : trace::CpuMode::unknown;
            trace::CpuSample sample{burst.last.time_ns, pid_, tid, true, false, mode};
            NativePlace place;
            if (!burst.last.kernel_mode) place.ip = burst.last.ip;
            if (burst.last.has_registers) {
                place.registers = &burst.last.registers;
                place.stack = burst.last.stack;
            }
            if (const auto stack = look_.look(thread.looked_at, sample, place)) {
                ++thread.ticks_taken;
                give(thread, sample, *stack);
            }
        }
        plan_next(thread, burst.last);
    }
    act_on(burst);
    if (burst.exited) remove_thread(tid);
}

/// After a sample that was due `since_ns` ago: draws a new period now and then, with the asked one as its
/// mean, which begins now. False where the present one goes on.
bool CpuSampler::renew_period(Thread& thread, std::uint64_t since_ns) {
    // After a number of samples, not after a time: a time would hold more of the short periods, and so too
    // many samples.
    if (++thread.samples_since_drawn >= samples_a_draw_) {
        thread.samples_since_drawn = 0;
        thread.period_ns =
            static_cast<std::uint64_t>(static_cast<double>(event_period_ns_) * (0.5 + random_.uniform()));
        // Where each sample draws, the time since the last one is part of this period.
        if (samples_a_draw_ == 1) thread.period_ns -= std::min(since_ns, event_period_ns_ / 4);
    } else if (thread.whole_period_ns != 0) {
        thread.period_ns = thread.whole_period_ns;
    } else {
        return false;
    }
    thread.whole_period_ns = 0;
    thread.perf.set_period(thread.period_ns);
    return true;
}

void CpuSampler::plan_next(Thread& thread, const PerfSample& last) {
    const std::uint64_t since = base::monotonic_ns() - last.time_ns;
    std::uint64_t due_cpu_ns = last.cpu_ns + thread.period_ns;
    if (renew_period(thread, since))
        due_cpu_ns = last.cpu_ns + std::min(since, event_period_ns_ / 4) + thread.period_ns;
    if (!perf_options_.exclude_kernel) return;
    thread.next_sample_cpu_ns = due_cpu_ns;
    const bool was_next = thread.check_ns == next_check_ns_;
    thread.check_ns = last.time_ns + (due_cpu_ns - last.cpu_ns) + kHiddenSlackNs;
    next_check_ns_ = std::min(next_check_ns_, thread.check_ns);
    if (!was_next) return;
    // Else we would be woken for a check that the record has made needless.
    next_check_ns_ = kNever;
    for (const auto& [tid, other] : threads_) next_check_ns_ = std::min(next_check_ns_, other->check_ns);
}

/// Looks whether the thread's CPU clock has passed a sampling point that left no record: then it was in the
/// kernel, where we may not look.
void CpuSampler::check_hidden(Thread& thread, std::uint64_t now_ns) {
    if (thread.perf.has_records()) {  // The event will be served in a moment, and plans the next check.
        thread.check_ns = now_ns + event_period_ns_;
        return;
    }
    const auto cpu = thread.perf.read_cpu_ns();
    if (!cpu) {
        thread.check_ns = kNever;
        return;
    }
    // Between reading the clock and now a record may have come after all.
    if (*cpu >= thread.next_sample_cpu_ns + kHiddenSlackNs / 2 && !thread.perf.has_records()) {
        const std::uint64_t passed = (*cpu - thread.next_sample_cpu_ns) / thread.period_ns + 1;
        thread.next_sample_cpu_ns += passed * thread.period_ns;
        if (!mixed_) losses_[trace::Loss::missed_samples] += passed - 1;
        const std::uint64_t since = *cpu + thread.period_ns - thread.next_sample_cpu_ns;
        if (renew_period(thread, since)) thread.next_sample_cpu_ns = *cpu + thread.period_ns;
        trace::CpuSample sample{now_ns, pid_, thread.tid, true, false, trace::CpuMode::system};
        if (const auto stack = look_.look(thread.looked_at, sample, NativePlace{})) {
            ++thread.ticks_taken;
            give(thread, sample, *stack);
        }
    }
    const std::uint64_t remaining =
        thread.next_sample_cpu_ns > *cpu ? thread.next_sample_cpu_ns - *cpu : thread.period_ns;
    const bool ran = *cpu != std::exchange(thread.checked_cpu_ns, *cpu);
    const std::uint64_t least = std::min(event_period_ns_ / 2, ran ? kHiddenBusyNs : kHiddenIdleNs);
    thread.check_ns = now_ns + std::max(remaining, least) + kHiddenSlackNs;
}

// ---- ticks ------------------------------------------------------------------------------------------------

std::uint64_t CpuSampler::due_ns() const {
    const std::uint64_t late = look_.stops().has_late() ? last_tick_ns_ + kMs / 2 : kNever;
    return std::min({ticking_ ? ticks_.due_ns() : kNever, next_refresh_ns_, next_check_ns_, late});
}

void CpuSampler::on_time(std::uint64_t now_ns) {
    if (look_.stops().has_late()) {
        look_.stops().let_late_go();
        last_tick_ns_ = now_ns;
    }
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
    tick_due_ns_ = ticks_.due_ns();
    losses_[trace::Loss::missed_samples] += ticks_.serve(now_ns);
    Burst burst;
    std::vector<int> ended;
    for (auto& [tid, thread] : threads_) {
        if (event_driven_ && thread->perf.is_open()) {
            if (thread->switches.has_records()) read_records(*thread, thread->switches, burst);
            if (!mixed_ && !options_.idle) continue;
        } else if (thread->perf.is_open()) {
            burst.exited = false;
            burst.samples = 0;
            if (thread->perf.has_records()) read_records(*thread, thread->perf, burst);
            if (burst.samples > 0) thread->label = burst.last;
            if (burst.exited) ended.push_back(tid);
        }
        poll_thread(*thread, now_ns);
    }
    last_tick_ns_ = now_ns;
    if (now_ns > contended_until_ns_) contended_until_ns_ = 0;
    act_on(burst);
    for (const int tid : ended) remove_thread(tid);
}

void CpuSampler::poll_thread(Thread& thread, std::uint64_t now_ns) {
    std::optional<bool> running = thread.on_cpu;
    if (!running) {
        running = thread.files.is_running();
        if (!running) return;
        if (tells_switches(thread)) thread.on_cpu = running;
    }
    // It ran until someone took its CPU, most likely we: its stack is where it was then, once. Between ticks
    // that are far apart others take it as well.
    if (thread.preempted_ns > (mixed_ ? std::max(last_tick_ns_, tick_due_ns_) : last_tick_ns_)) {
        running = true;
        contended_until_ns_ = now_ns + 20 * kMs;
    }
    const bool with_events = event_driven_ && thread.perf.is_open();
    if (with_events && *running) {
        if (!mixed_) return;  // its own clock takes that one
        if (thread.ticks_taken > 0) {
            --thread.ticks_taken;
            return;
        }
    }
    if (!*running && !options_.idle) {
        flush_pending(thread);
        thread.label.reset();
        return;
    }
    trace::CpuSample sample{base::monotonic_ns(), pid_, thread.tid, *running, false, trace::CpuMode::unknown};
    if (*running && !tells_switches(thread) && !has_burned(thread)) return;
    if (stopping_ && *running) {
        if (const auto held = look_.look_stopped(thread.looked_at, sample)) give(thread, sample, *held);
        return;
    }
    NativePlace place;
    if (thread.label && !thread.label->kernel_mode) place.ip = thread.label->ip;
    const auto stack = look_.look(thread.looked_at, sample, place);
    // A label goes to the sample nearest in time, which is this one or the one before.
    if (thread.label && thread.pending) {
        const std::uint64_t at = thread.label->time_ns;
        trace::CpuSample& before = thread.pending->first;
        const std::uint64_t to_before = at > before.time_ns ? at - before.time_ns : 0;
        const std::uint64_t to_this = sample.time_ns > at ? sample.time_ns - at : 0;
        if (to_before <= to_this) {
            before.mode = look_.mode_of(*thread.label);
            thread.label.reset();
        }
    }
    flush_pending(thread);
    if (!stack) return;
    if (thread.label && *running) sample.mode = look_.mode_of(*thread.label);
    thread.label.reset();
    if (thread.perf.is_open() && !with_events && *running && sample.mode == trace::CpuMode::unknown)
        thread.pending.emplace(sample, *stack);
    else
        give(thread, sample, *stack);
}

bool CpuSampler::tells_switches(const Thread& thread) const {
    return thread.switches.is_open() || (perf_options_.switches && thread.perf.is_open());
}

/// Whether the thread has burned what the next sample stands for.
bool CpuSampler::has_burned(Thread& thread) const {
    const auto burned = thread.files.burned_ns();
    return !burned || thread.allowance.take(*burned, period_ns_);  // a kernel without CONFIG_SCHED_INFO
}

void CpuSampler::flush_pending(Thread& thread) {
    if (!thread.pending) return;
    give(thread, thread.pending->first, thread.pending->second);
    thread.pending.reset();
}

void CpuSampler::give(Thread& thread, const trace::CpuSample& sample, CpuSink::StackId stack) {
    if (!thread.named) {
        thread.named = true;
        tell_name(thread);
    }
    sink_.add(sample, stack);
}

/// Tells what Python calls the thread, else what the kernel calls it. A name of Python's stays when it can no
/// longer be read, as at the thread's end.
void CpuSampler::tell_name(Thread& thread) {
    std::string name = look_.name_of(thread.looked_at);
    thread.named_by_python |= !name.empty();
    if (!thread.named_by_python) name = thread.files.name();
    if (!name.empty()) sink_.name_thread(pid_, thread.tid, name);
}

void CpuSampler::finish() {
    if (finished_) return;
    finished_ = true;
    for (auto& [tid, thread] : threads_) {
        flush_pending(*thread);
        tell_name(*thread);
    }
}

}  // namespace memattach::probe
