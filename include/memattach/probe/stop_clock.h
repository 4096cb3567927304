/// What a stop costs a thread, and so how much of the target's CPU time was its own.
///
/// A stop is an exception, a signal and two context switches: some 4 µs of the thread's own CPU time, and
/// some 10 µs of wall time, that nobody sees who only looks at when wait() returned and when the thread was
/// let go. Both are measured in place by null traps: hits that are taken a second time at once, with nothing
/// of the program's in between.
#pragma once

#include <cstdint>

namespace memattach::probe {

/// The two clocks, read together. `cpu_ns` is the CPU time of the whole target process by the kernel's clock
/// of that process (clock_getcpuclockid(3)): nanoseconds, all threads, one system call.
struct Moment {
    std::uint64_t wall_ns = 0;
    std::uint64_t cpu_ns = 0;
    /// By TargetClock::read_ns(), where that was asked: only differences mean something. 0: it wasn't, or
    /// can't be.
    std::uint64_t exact_ns = 0;
    /// Several threads can run at a time: cpu_ns may lack what those that run elsewhere have used since the
    /// last tick (target_clock.h).
    bool is_late = false;
};

/// A running mean that forgets: of the last `memory` values, more or less; plain mean before that.
struct RunningMean {
    double value = 0;
    double count = 0;

    void add(double x, double memory) {
        count = count + 1 < memory ? count + 1 : memory;
        value += (x - value) / count;
    }
    /// For costs: one that something else got into (another process ran) says little about the others.
    void add_cost(double x, double memory) {
        constexpr double kOutlier = 4;
        add(count >= 16 && x > kOutlier * value ? kOutlier * value : x, memory);
    }
};

class StopClock {
  public:
    explicit StopClock(Moment start) : start_(start) {}

    /// Stack walk, return breakpoint and its stop, on top of a plain hit: wall time, ns.
    static constexpr double kSampleExtraNs = 27'000;
    /// What a stop costs a thread besides, in caches gone cold: 200 to 500 ns were measured, the more the
    /// longer the code until the next stop.
    static constexpr double kColdNs = 250;

    /// The target's own time since the start: its CPU clock less what stops burnt of it. ns.
    [[nodiscard]] double own_ns(Moment now) const;
    /// What stops burnt of it so far. ns.
    [[nodiscard]] double burnt_ns() const { return burnt_cpu_ns_; }

    /// A stop is over. `stopped_ns`: from wait()'s return to just before the thread was let go; `plain`: a
    /// hit of which nothing was kept, which is what costs are learned from. Returns what it is charged as,
    /// with the way into the stop and out of it.
    double add_stop(std::uint64_t stopped_ns, bool plain);

    /// The target's processor did something else of memattach's.
    void add_work(double ns) { stopped_ns_ += ns; }

    /// True when the present hit should be taken a second time, once it has been served.
    [[nodiscard]] bool wants_null_trap();
    /// `cpu_ns`: what the thread's own CPU time grew by between the two stops (schedstat's first number is
    /// exact for a stopped thread); `wall_ns`: from letting it go to wait()'s return; `plain`: of
    /// the hit before it, because the more was done for that, the colder are the caches that the thread comes
    /// back to. Returns what it is charged as.
    double add_null_trap(std::uint64_t cpu_ns, std::uint64_t wall_ns, bool plain);

    /// Wall time of a plain hit, all in all.
    [[nodiscard]] double stop_cost_ns() const;
    /// A plain hit's cost in the thread's own CPU time, or that of a stop in which more was done.
    [[nodiscard]] double stop_cpu_ns(bool plain = true) const;
    /// Wall time that the thread spends on the way into a stop and out of it.
    [[nodiscard]] double stop_wall_ns() const;

    [[nodiscard]] double stopped_ns() const { return stopped_ns_; }
    /// Stops so far, null traps left out.
    [[nodiscard]] std::uint64_t stops() const { return stops_; }
    [[nodiscard]] std::uint64_t null_traps() const { return null_traps_; }

  private:
    Moment start_;
    RunningMean null_cpu_, null_cpu_kept_, null_wall_, plain_stopped_;
    double burnt_cpu_ns_ = 0;
    double stopped_ns_ = 0;
    std::uint64_t stops_ = 0, null_traps_ = 0, since_null_ = 0;
};

}  // namespace memattach::probe
