/// When allocation sites are armed, and which of the allocations seen are kept. Pure arithmetic on clocks and
/// counts: no process, no system call; tests run it against simulated programs.
///
///     Schedule schedule(policy, now);
///     loop:
///       Plan plan = schedule.step(now);            // when plan.wake_ns is over
///       arm and disarm what the plan says; schedule.armed(now) when a window's sites are all armed
///       for (trace::Window& w : schedule.take_closed()) …   // its samples can be sent: own_ns / span_own_ns
///       at a hit of a kind that goes by windows:
///         Arrival arrival = schedule.arrive(now);  // before it is served, the thread still stopped
///         closing: schedule.close(now, …), then disarm and don't count the hit; ignore: don't count it
///       at a hit that counts:
///         bool keep = sampler.keep(size, schedule.sampling_bytes(kind));
///         schedule.hit({kind, size, keep, stopped_ns});     // and other_stop() for each further stop
///       before a hit is served:
///         if (schedule.wants_null_trap()) { put pc back on the int3, let go, wait; schedule.null_trap(…); }
///
/// **Own time.** The clock of everything here is the target's own run time: its CPU clock less what the stops
/// themselves burnt of it (an exception, a signal and two context switches cost a thread some 4 µs of its own
/// CPU time). That cost is measured in place by null traps: hits that are taken a second time at once, with
/// nothing of the program's in between. Where hits are so dense that this isn't enough, progress.h measures a
/// window's own time by what the program itself counts.
///
/// **Spans and windows.** Own time is cut into spans, and in each one window is armed at a random place. How
/// long spans and windows are is decided before a span begins, from what earlier ones cost: a window is never
/// cut short because it is busy, which would count bursts for less than they are. An allocation seen in a
/// window of w ns out of a span of s stands for s / w of its kind. Windows are short and many rather than
/// long and few: a program's phases are what samples of time have to get right.
///
/// **Budget.** Stops so far over own time so far is steered towards max_overhead. The malloc group stays
/// armed without a break while that fits; the object group always goes by windows (of a whole span on light
/// targets).
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "memattach/probe/progress.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

/// Keeps an allocation of `size` with probability 1 − exp(−size / R): every byte is picked with probability
/// 1 / R, and a block is kept when any of its bytes is. A block of 0 bytes counts as one byte.
class ByteSampler {
  public:
    explicit ByteSampler(std::uint64_t seed) : random_(seed) {}
    [[nodiscard]] bool keep(std::uint64_t size_bytes, double sampling_bytes);

  private:
    std::mt19937_64 random_;
};

struct SchedulePolicy {
    double max_overhead = 0.05;        ///< stopped time over own time
    double threshold_bytes = 1 << 20;  ///< upper bound of R
    std::uint64_t seed = 1;
};

/// The two clocks, read together. `cpu_ns` is the CPU time of the whole target process by the kernel's clock
/// of that process (clock_getcpuclockid(3)): nanoseconds, all threads, one system call.
struct Moment {
    std::uint64_t wall_ns = 0;
    std::uint64_t cpu_ns = 0;
};

struct Plan {
    bool malloc_armed = false;  ///< calls and frees of the malloc group, and the mmap group
    bool object_armed = false;  ///< calls and frees of the object group, and the redirects
    /// For Alloc::window of a kind that is_windowed(); 0: no window is open.
    std::uint64_t window = 0;
    std::uint64_t wake_ns = 0;  ///< base::monotonic_ns(): call step() by then, even where nothing happened
    /// Read the program's progress now: the first, second and third time before a window (before it is
    /// armed). 0: don't. Asked for only where hits are dense.
    int look = 0;
};

/// What a hit of a kind that goes by windows is, seen when it arrives.
enum class Arrival : std::uint8_t {
    counts,
    ignore,   ///< it trapped before everything was armed, or after the window
    closing,  ///< the window's time was over before it: close the window, don't count it
};

/// An allocation or a free that trapped. Allocations only: size_bytes. Times in ns.
struct Hit {
    trace::AllocKind kind = trace::AllocKind::malloc;
    std::uint64_t size_bytes = 0;
    bool sampled = false;
    /// From wait()'s return to just before the thread was let go, everything included. What the thread spent
    /// getting into the stop and out of it is added here, from the null traps.
    std::uint64_t stopped_ns = 0;
};

class Schedule {
  public:
    Schedule(const SchedulePolicy& policy, Moment start);

    /// What should be armed now. Own time is what `now` says: call it with a fresh Moment.
    [[nodiscard]] Plan step(Moment now);

    void hit(const Hit& hit);
    /// A stop that was memattach's doing but no hit: a return breakpoint, a null trap, a stop to disarm.
    void other_stop(std::uint64_t stopped_ns);

    /// True when the present hit should be taken a second time before it is served.
    [[nodiscard]] bool wants_null_trap();
    /// `cpu_ns`: what the thread's own CPU time grew by between the two stops (schedstat's first number is
    /// exact for a stopped thread); `wall_ns`: from letting it go to wait()'s return. Includes other_stop().
    void null_trap(std::uint64_t cpu_ns, std::uint64_t wall_ns);

    /// The window's sites are all armed: its time starts here.
    void armed(Moment now);
    [[nodiscard]] Arrival arrive(Moment now);
    /// `measured`: the window's own time by the program's own progress, where that could be told.
    void close(Moment now, std::optional<OwnTime> measured);
    /// What the target's CPU clock went forward since armed(): the most that its own time can be.
    [[nodiscard]] double window_cpu_ns(Moment now) const;

    /// R for the next allocation of this kind. It changes only between windows or on what is past, never
    /// with the allocation itself.
    [[nodiscard]] double sampling_bytes(trace::AllocKind kind) const;

    /// Whether this kind goes by windows now: its samples wait for take_closed() to be weighed. Else it is
    /// armed without a break: fraction 1, window 0.
    [[nodiscard]] bool is_windowed(trace::AllocKind kind) const;

    /// The windows that ended since the last call, one entry a kind that went by windows; pid is left 0.
    [[nodiscard]] std::vector<trace::Window> take_closed();
    /// Ends an open window at once (the session is over).
    void finish(Moment now);

    struct Figures {
        double own_ns = 0;
        double overhead = 0;  ///< stopped / own so far
        double stopped_ns = 0;
        double coverage_malloc = 0;  ///< share of own time in which the group was armed
        double coverage_object = 0;
        double hit_cpu_ns = 0;   ///< a stop's cost in the thread's own CPU time
        double hit_wall_ns = 0;  ///< what the thread spends on the way into a stop and out of it
        std::uint64_t hits = 0;
        std::uint64_t null_traps = 0;
        std::uint64_t windows = 0;
        std::uint64_t cut_windows = 0;       ///< ended early to protect the target
        std::uint64_t measured_windows = 0;  ///< whose own time the program's progress told
        std::uint64_t dense_windows = 0;     ///< with hits too dense for the CPU clock to tell their time
    };
    [[nodiscard]] Figures figures(Moment now) const;

  private:
    /// A running mean that forgets: of the last `memory` values, more or less; plain mean before that.
    struct Average {
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
    /// What a group does per ns of own time in which it is armed.
    struct Rate {
        Average hits;
        Average bytes;
        double window_hits = 0, window_bytes = 0;
    };
    enum class Phase : std::uint8_t { before_window, in_window, after_window };

    [[nodiscard]] double own(Moment now) const;
    void plan_span(double own_now);
    void open_window(Moment now);
    /// `spread`: of the own time; 0: what the cost of its stops leaves open.
    void close_window(Moment now, double own_ns, bool cut, double spread = 0);
    void release_waiting();
    void review_malloc(Moment now);
    void settle_always(Moment now);
    [[nodiscard]] double stop_cost() const;
    [[nodiscard]] bool is_over(double own_ns) const;
    /// The computed own time of the open window, with what measured ones have taught.
    [[nodiscard]] double window_length(double own_ns) const;
    [[nodiscard]] double null_cpu() const;
    Rate& rate(trace::AllocKind kind) { return kind == trace::AllocKind::object ? object_ : malloc_; }
    [[nodiscard]] const Rate& rate(trace::AllocKind kind) const {
        return kind == trace::AllocKind::object ? object_ : malloc_;
    }

    SchedulePolicy policy_;
    std::mt19937_64 random_;
    Moment start_;
    bool malloc_always_ = true;

    // costs
    Average null_cpu_, null_wall_, hit_stopped_;
    double burnt_cpu_ns_ = 0;  ///< of the target's CPU clock, by stops
    double stopped_ns_ = 0;
    std::uint64_t hits_ = 0, null_traps_ = 0;
    std::uint64_t since_null_ = 0;

    // the present span, in own time
    Phase phase_ = Phase::before_window;
    double span_start_ = 0, span_ns_ = 0, window_start_ = 0, window_ns_ = 0;
    double window_opened_ = 0, window_stopped_ = 0;
    std::uint64_t window_hits_ = 0, opened_wall_ns_ = 0;
    std::uint64_t window_id_ = 0, cut_windows_ = 0;
    std::vector<trace::Window> closed_;

    Rate malloc_, object_;
    // the stretch in which malloc is armed without a break
    double always_start_ = 0, always_stopped_ = 0, always_hits_ = 0, always_bytes_ = 0;
    std::uint64_t always_wall_ns_ = 0;
    double reviewed_own_ = 0, reviewed_stopped_ = 0, reviewed_hits_ = 0, reviewed_bytes_ = 0;
    double armed_malloc_ns_ = 0, armed_object_ns_ = 0;

    bool fresh_ = false;  ///< no hit has arrived since the window was armed
    int looks_ = 0;
    bool dense_ = false;  ///< the span's window is planned for hits so dense that progress must tell its time
    double dense_hits_ = 64;
    double armed_cpu_ns_ = 0;
    std::uint64_t measured_windows_ = 0;
    std::uint64_t dense_windows_ = 0;
    struct Waiting {
        trace::Window window;
        double hits;
    };
    std::vector<Waiting> waiting_;
    Average own_per_hit_;  ///< in measured windows
    Average log_ratio_;    ///< of measured own time over the computed one, in dense windows
};

}  // namespace memattach::probe
