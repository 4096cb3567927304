/// When allocation sites are armed, and which of the allocations seen are kept. Pure arithmetic on clocks and
/// counts: no process, no system call; tests run it against simulated programs.
///
///     Schedule schedule(policy, now);
///     loop:
///       Plan plan = schedule.step(now);            // when plan.wake_ns is over
///       arm and disarm what the plan says; group.armed(now) when a window's sites are all armed
///       for (trace::Window& w : schedule.take_closed()) …   // its samples can be sent: own_ns / span_own_ns
///       at a hit of a group that goes by windows:
///         Arrival arrival = group.arrive(now);     // before it is served, the thread still stopped
///         closing: group.close(now, …), then disarm and don't count the hit; ignore: don't count it
///       at a hit that counts:
///         bool keep = sampler.keep(size, group.sampling_bytes());
///         schedule.hit({kind, size, keep, stopped_ns});     // and other_stop() for each further stop
///       and then, schedule.wants_null_trap(): put pc back on the int3, let go, wait; schedule.null_trap(…)
///
/// **Own time.** The clock of everything here is the target's own run time: its CPU clock less what the stops
/// themselves burnt of it (stop_clock.h). Where hits are so dense that this isn't enough, a window is spent
/// by a copy of the program, undisturbed (shadow.h).
///
/// **Spans and windows.** Own time is cut into spans, and in each one window is armed at a random place. How
/// long spans and windows are is decided before a span begins, from what earlier ones cost: a window is never
/// cut short because it is busy, which would count bursts for less than they are. An allocation seen in a
/// window of w ns out of a span of s stands for s / w of its kind. Windows are short and many rather than
/// long and few: a program's phases are what samples of time have to get right.
///
/// **Budget.** Stops so far over own time so far is steered towards max_overhead. Each group has windows of
/// its own: small objects come so much more often than what goes to malloc that windows made for them would
/// see next to nothing of it, and the bytes are mostly there. The malloc group stays armed without a break
/// while that fits its part; the object group always goes by windows (of a whole span on light targets) and
/// has what is left.
///
/// Malloc's large blocks are a group of their own where they can be told from the others by where they come
/// by (large_entry.h): few hits, and most of the bytes of many programs. It serves while the malloc group
/// goes by windows, is armed without a break while that fits its part, and goes by windows else.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "memattach/probe/group_schedule.h"
#include "memattach/probe/stop_clock.h"
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
    bool has_large = false;  ///< malloc's large blocks have a site of their own
};

struct Plan {
    GroupPlan malloc;           ///< calls and frees of the malloc group, and the mmap group
    GroupPlan object;           ///< calls and frees of the object group, and the redirects
    GroupPlan large;            ///< the large group, while the malloc group goes by windows
    std::uint64_t wake_ns = 0;  ///< base::monotonic_ns(): call step() by then, even where nothing happened

    [[nodiscard]] const GroupPlan& of(trace::AllocKind kind) const {
        if (kind == trace::AllocKind::large) return large;
        return kind == trace::AllocKind::object ? object : malloc;
    }
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
    Schedule(const Schedule&) = delete;
    Schedule& operator=(const Schedule&) = delete;

    /// What should be armed now. Own time is what `now` says: call it with a fresh Moment.
    [[nodiscard]] Plan step(Moment now);

    void hit(const Hit& hit);
    /// A stop of the group of `kind` that was memattach's doing but no hit that counts: a return breakpoint,
    /// a hit outside of its window.
    void other_stop(trace::AllocKind kind, std::uint64_t stopped_ns);
    /// What the target's processor was kept from it for besides, ns: windows were planned, opened, closed.
    void work(double ns);

    [[nodiscard]] bool wants_copies() const { return malloc_.wants_copy() || object_.wants_copy(); }
    /// As GroupSchedule::allow_copies().
    void allow_copies(bool available, bool ready) {
        malloc_.allow_copies(available, ready);
        object_.allow_copies(available, ready);
    }

    /// As StopClock::burnt_ns().
    [[nodiscard]] double burnt_ns() const { return clock_.burnt_ns(); }
    /// As GroupSchedule::set_user_share().
    void set_user_share(double share) {
        malloc_.set_user_share(share);
        object_.set_user_share(share);
    }

    /// As GroupSchedule::is_timing(), of any group.
    [[nodiscard]] bool is_timing() const {
        return malloc_.is_timing() || object_.is_timing() || (large_ && large_->is_timing());
    }

    [[nodiscard]] bool wants_null_trap() { return clock_.wants_null_trap(); }
    /// As StopClock::add_null_trap(), after a hit of `kind`.
    void null_trap(trace::AllocKind kind, std::uint64_t cpu_ns, std::uint64_t wall_ns, bool plain);

    [[nodiscard]] GroupSchedule& group(trace::AllocKind kind) {
        if (kind == trace::AllocKind::large && large_) return *large_;
        return kind == trace::AllocKind::object ? object_ : malloc_;
    }
    /// Whether malloc's large blocks are the large group's now.
    [[nodiscard]] bool has_large() const { return large_ && malloc_.is_windowed(); }

    /// The windows that ended since the last call, one entry a kind that went by windows; pid is left 0.
    [[nodiscard]] std::vector<trace::Window> take_closed();
    /// Ends open windows at once (the session is over).
    void finish(Moment now);

    struct Figures {
        double own_ns = 0;
        double overhead = 0;  ///< stopped / own so far
        double stopped_ns = 0;
        double hit_cpu_ns = 0;   ///< a stop's cost in the thread's own CPU time
        double hit_wall_ns = 0;  ///< what the thread spends on the way into a stop and out of it
        std::uint64_t hits = 0;
        std::uint64_t null_traps = 0;
        GroupSchedule::Figures malloc, object;
        std::uint64_t large_windows = 0;
        double coverage_large = 0;  ///< share of own time in which large blocks were seen, by either group
    };
    [[nodiscard]] Figures figures(Moment now) const;

  private:
    void share_budget(double own_ns);
    void step_large(Moment now, Plan& plan);

    double max_overhead_;
    StopClock clock_;
    GroupSchedule malloc_, object_;
    std::optional<GroupSchedule> large_;
    bool large_paused_ = true;
    double paused_ns_ = 0, paused_since_ = 0;  ///< own time
    std::uint64_t hits_ = 0;
};

}  // namespace memattach::probe
