/// Samples the CPU stacks of one Python process without stopping it.
///
///     CpuSampler sampler(pid, runtime, memory, functions, {.rate_hz = 100}, sink, loop);
///     … the session's loop calls on_ready() and on_time(), sink gets (CpuSample, stack) pairs …
///
/// Two ways of telling when to look, and both together:
///
///  - Events (where perf is allowed, up to kEventsAloneHz; with `native`, or where the kernel side is
///    hidden, up to kEventRateLimitHz): each thread's own CPU clock wakes us each 1/rate seconds that it
///    *burned*; its stack is read at once. Threads that sleep cost nothing, and the samples are spread over
///    CPU time: with periods that are drawn anew about every kRedrawNs, so that they don't keep step with
///    what the program repeats. The record says where the thread was: Python, native or system.
///  - Ticks (above kEventRateLimitHz; perf refused; waiting threads with `idle`): at absolute deadlines every
///    thread that is on a CPU at that moment is read. Where perf works, its records come at a lower rate and
///    label the sample that is nearest in time, and its switch records tell without a system call who is on a
///    CPU.
///  - In between, ticks at `rate` and events at kLabelledHz. An event costs the thread some 80 µs in a
///    virtual machine: its timer's interrupt, and waking us on another processor. A tick costs it nothing,
///    but says nothing about Python, native or system: the split is that of the events. A sample that is 0.5
///    ms away can't lend its label, programs do other things by then. For each event the thread's next tick
///    is left out, so that a sample stands for 1/rate seconds whichever way it came.
///
/// With `blocking`, ticks stop each thread that is on a CPU for the microseconds that its stack takes; its
/// registers tell the mode. With `native`, perf's records bring registers and the top of the stack, which are
/// unwound and merged with the Python frames; where perf is refused they come from such a stop.
///
/// Where only the user side may be watched (perf_event_paranoid 2, no privilege) the kernel drops what would
/// have fallen into system time. Such a sample shows by its absence: the CPU clock has passed the point where
/// it was due and there is no record. It is taken right then, as system time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "memattach/probe/cpu_look.h"
#include "memattach/probe/cpu_sink.h"
#include "memattach/probe/cpu_task.h"
#include "memattach/probe/cpu_tick.h"
#include "memattach/probe/perf_event.h"
#include "memattach/probe/source.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::probe {

inline constexpr double kEventRateLimitHz = 2000;
inline constexpr double kEventsAloneHz = 250;
inline constexpr double kLabelledHz = 100;

struct CpuOptions {
    double rate_hz = 100;
    bool idle = false;      ///< also threads that wait
    bool blocking = false;  ///< stop each thread while its stack is read
    bool native = false;    ///< native frames; up to kEventRateLimitHz
};

class CpuSampler final : public Source {
  public:
    /// The references must outlive the sampler.
    CpuSampler(int pid, const python::Runtime& runtime, const process::Memory& memory,
               trace::FunctionTable& functions, const CpuOptions& options, CpuSink& sink, Poller& poller);
    ~CpuSampler() override;

    void on_ready(std::uint64_t token, bool hangup) override;
    [[nodiscard]] std::uint64_t due_ns() const override;
    void on_time(std::uint64_t now_ns) override;
    [[nodiscard]] bool may_spin() const override { return contended_until_ns_ == 0; }
    void finish() override;

    [[nodiscard]] std::string engine() const {
        return stopping_ ? "blocking" : perf_.allowed ? "perf" : "timer";
    }
    [[nodiscard]] std::uint64_t stopped_ns() const { return look_.stops().total_ns(); }
    [[nodiscard]] std::uint64_t longest_stop_ns() const { return look_.stops().longest_ns(); }
    [[nodiscard]] const trace::LossCounts& losses() const { return losses_; }
    /// What the reader of the profile must know about how it was taken.
    [[nodiscard]] std::vector<std::string> notes() const;
    [[nodiscard]] bool finalising() const { return look_.finalising(); }

  private:
    struct Thread;

    void refresh_threads(std::uint64_t now_ns);
    void map_states(std::uint64_t now_ns);
    Thread* add_thread(int tid);
    void remove_thread(int tid);

    struct Burst;
    void read_records(Thread& thread, PerfEvent& event, Burst& burst);
    void act_on(const Burst& burst);
    void serve_event(int tid);
    void serve_tick(std::uint64_t now_ns);
    void poll_thread(Thread& thread, std::uint64_t now_ns);
    bool has_burned(Thread& thread) const;
    /// Whether the kernel tells each time that it gets a CPU and loses it.
    bool tells_switches(const Thread& thread) const;
    void plan_first(Thread& thread);
    bool renew_period(Thread& thread, std::uint64_t since_ns);
    void check_hidden(Thread& thread, std::uint64_t now_ns);
    void plan_next(Thread& thread, const PerfSample& last);

    void give(Thread& thread, const trace::CpuSample& sample, CpuSink::StackId stack);
    void tell_name(Thread& thread);
    void flush_pending(Thread& thread);

    int pid_;
    CpuOptions options_;
    CpuSink& sink_;
    trace::LossCounts losses_;
    CpuLook look_;
    PerfAccess perf_;
    bool stopping_;  ///< ticks stop threads
    bool event_driven_;
    bool mixed_;  ///< event-driven, at kLabelledHz, with ticks at the rate
    PerfOptions perf_options_;
    std::uint64_t period_ns_;
    std::uint64_t event_period_ns_;  ///< between a thread's events
    std::uint64_t samples_a_draw_;   ///< so many of them before a new period is drawn
    TickSchedule ticks_;
    SmallRandom random_;
    bool ticking_ = false;
    std::uint64_t tick_due_ns_ = 0;  ///< of the tick that is being served

    Poller& poller_;
    std::unordered_map<int, std::unique_ptr<Thread>> threads_;
    std::uint64_t next_refresh_ns_ = 0;
    std::uint64_t next_check_ns_ = kNever;
    std::uint64_t last_tick_ns_ = 0;
    std::uint64_t contended_until_ns_ = 0;  ///< 0: no thread was kept off a CPU of late
    std::size_t threads_without_perf_ = 0;
    int perf_errno_ = 0;
    bool finished_ = false;
};

}  // namespace memattach::probe
