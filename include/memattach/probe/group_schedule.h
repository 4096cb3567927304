/// When the sites of one group are armed: without a break while that fits its budget, else in short windows
/// at random places of the target's own time. Schedule (schedule.h) has one of these for each group.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "memattach/probe/progress.h"
#include "memattach/probe/stop_clock.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

/// What a hit of a group that goes by windows is, seen when it arrives.
enum class Arrival : std::uint8_t {
    counts,
    ignore,   ///< it trapped before everything was armed, or after the window
    closing,  ///< the window's time was over before it: close the window, don't count it
};

struct GroupPlan {
    bool armed = false;
    /// For Alloc::window where the group goes by windows; 0: no window is open.
    std::uint64_t window = 0;
    /// Read the program's progress now: the first, second and third time before a window (before it is
    /// armed). 0: don't. Asked for only where hits are dense.
    int look = 0;
    std::uint64_t wake_ns = 0;  ///< as Plan::wake_ns
};

class GroupSchedule {
  public:
    struct Policy {
        std::vector<trace::AllocKind> kinds;  ///< whose windows these are
        bool may_be_always = false;           ///< armed without a break while that fits
        double threshold_bytes = 1 << 20;     ///< upper bound of R
        std::uint64_t seed = 1;
    };

    /// `clock` is shared by the groups and must outlive this. `budget`: stopped time over own time.
    GroupSchedule(Policy policy, const StopClock& clock, double budget, Moment start);

    void set_budget(double budget) { budget_ = budget; }
    [[nodiscard]] GroupPlan step(Moment now);

    /// A hit of this group that counts; its cost comes with charge().
    void count_hit(std::uint64_t size_bytes);
    /// Stops that were this group's doing. ns.
    void charge(double cost_ns);
    [[nodiscard]] double spent_ns() const { return spent_ns_; }

    /// The window's sites are all armed: its time starts here.
    void armed(Moment now);
    [[nodiscard]] Arrival arrive(Moment now);
    /// `measured`: the window's own time by the program's own progress, where that could be told.
    void close(Moment now, std::optional<OwnTime> measured);
    /// What the target's CPU clock went forward since armed(): the most that its own time can be.
    [[nodiscard]] double window_cpu_ns(Moment now) const;

    [[nodiscard]] double sampling_bytes() const;
    [[nodiscard]] bool is_windowed() const { return !always_; }
    [[nodiscard]] std::vector<trace::Window> take_closed() { return std::exchange(closed_, {}); }
    void finish(Moment now);

    struct Figures {
        double coverage = 0;  ///< share of own time in which the group was armed
        std::uint64_t windows = 0;
        std::uint64_t cut_windows = 0;       ///< ended early to protect the target
        std::uint64_t measured_windows = 0;  ///< whose own time the program's progress told
        std::uint64_t dense_windows = 0;     ///< with hits too dense for the CPU clock to tell their time
    };
    [[nodiscard]] Figures figures(Moment now) const;

  private:
    enum class Phase : std::uint8_t { before_window, in_window, after_window };

    void plan_span(double own_now);
    void open_window(Moment now);
    void end_by_clock(Moment now, double clocked, bool cut);
    /// `spread`: how far off own_ns may be, relative, for all windows together.
    void close_window(Moment now, double own_ns, double spread, bool cut);
    void review_always(Moment now);
    void settle_always(Moment now);
    [[nodiscard]] double stops_in_window() const;
    [[nodiscard]] bool is_over(double own_ns) const;
    [[nodiscard]] double clocked_ns(double own_ns) const;

    Policy policy_;
    const StopClock& clock_;
    std::mt19937_64 random_;
    double budget_;
    double spent_ns_ = 0;
    bool always_;

    /// Hits and bytes per ns of own time in which the group is armed.
    RunningMean hits_, bytes_;
    double armed_ns_ = 0;

    // the present span, in own time
    Phase phase_ = Phase::before_window;
    double span_start_ = 0, span_ns_ = 0, window_start_ = 0, window_ns_ = 0;
    double window_opened_ = 0, window_stopped_ = 0, window_cpu_start_ = 0;
    double window_hits_ = 0, window_bytes_ = 0;
    std::uint64_t window_stops_start_ = 0;  ///< of the clock, when the window was armed
    std::uint64_t opened_wall_ns_ = 0, window_id_ = 0;
    std::vector<trace::Window> closed_;

    // the stretch in which the group is armed without a break
    double always_start_ = 0, always_hits_ = 0, always_bytes_ = 0;
    std::uint64_t always_wall_ns_ = 0;
    double reviewed_own_ = 0, reviewed_spent_ = 0, reviewed_hits_ = 0, reviewed_bytes_ = 0;

    bool fresh_ = false;  ///< no hit has arrived since the window was armed
    int looks_ = 0;
    bool dense_ = false;  ///< the window is planned for hits so dense that progress must tell its time
    double dense_hits_ = 64;
    RunningMean measured_own_, measured_hits_;  ///< of windows whose time progress told
    RunningMean pooled_own_, pooled_hits_;      ///< of those that it didn't
    std::uint64_t cut_windows_ = 0, measured_windows_ = 0, dense_windows_ = 0;
};

}  // namespace memattach::probe
