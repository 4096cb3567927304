/// When the sites of one group are armed: without a break while that fits its budget, else in short windows
/// at random places of the target's own time. Schedule (schedule.h) has one of these for each group.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "memattach/probe/shadow.h"
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
    /// A shadow should take over a thread that runs, as soon as there is one: copy_asked() when it is being
    /// stopped for that.
    bool copy = false;
    std::uint64_t wake_ns = 0;  ///< as Plan::wake_ns
};

class GroupSchedule {
  public:
    struct Policy {
        std::vector<trace::AllocKind> kinds;  ///< whose windows these are
        bool may_be_always = false;           ///< armed without a break while that fits
        double threshold_bytes = 1 << 20;     ///< upper bound of R
        std::uint64_t seed = 1;
        /// Hits are to be kept, nearly all of them, as far as the budget allows: what isn't kept leaves
        /// blocks that it took the place of seemingly alive.
        bool keep_most = false;
    };

    /// `clock` is shared by the groups and must outlive this. `budget`: stopped time over own time.
    GroupSchedule(Policy policy, const StopClock& clock, double budget, Moment start);

    /// `to_be_always`: what it would have where it is armed without a break, if that is another one.
    void set_budget(double budget, std::optional<double> to_be_always = std::nullopt) {
        budget_ = budget;
        always_budget_ = to_be_always.value_or(budget);
    }
    [[nodiscard]] GroupPlan step(Moment now);
    /// Another group sees to its sites from now on; until resume() step() isn't called.
    void pause(Moment now) { finish(now); }
    void resume(Moment now);

    /// A hit of this group that counts; its cost comes with charge().
    void count_hit(std::uint64_t size_bytes);
    /// Stops that were this group's doing. ns.
    void charge(double cost_ns);
    [[nodiscard]] double spent_ns() const { return spent_ns_; }

    /// The window's sites are all armed: its time starts here.
    void armed(Moment now);
    /// `parallel`: so many threads can run at a time.
    [[nodiscard]] Arrival arrive(Moment now, std::size_t parallel = 1);
    /// Whether arrive() would say that it counts whatever the CPU clock says, to read which costs as much as
    /// a tenth of a stop.
    [[nodiscard]] bool surely_counts(std::uint64_t wall_ns) const;
    void close(Moment now);

    /// Whether there are shadows, and one could start now. Before step().
    void allow_copies(bool available, bool ready) {
        copies_ = available;
        copy_ready_ = ready;
    }
    void hold_copy() { copy_ready_ = false; }
    /// The next window is to be a shadow's.
    [[nodiscard]] bool wants_copy() const { return copy_ && phase_ == Phase::before_window; }
    /// A window for a shadow is open, or a shadow at work.
    [[nodiscard]] bool is_copying() const { return copy_pending_ || (copy_ && phase_ == Phase::in_window); }
    void copy_asked(Moment now);
    /// The thread has stopped: what a shadow is to do. copied() says what came of it.
    [[nodiscard]] ShadowWindow copy();
    /// It was in the kernel for as long as a window, or had gone to sleep before it could be stopped: another
    /// one is asked.
    void copy_missed(Moment now);
    /// A thread that was in a system call comes out of it: whether that took longer than a window.
    [[nodiscard]] bool is_copy_late(Moment now) const {
        return static_cast<double>(now.wall_ns - opened_wall_ns_) > window_ns_;
    }
    void copied(const ShadowResult& result);
    /// How much of its own time the target is outside of the kernel, where shadows are: that is what their
    /// windows stand for.
    void set_user_share(double share) { user_share_ = share; }

    /// A window by the clock is open: moments have to be exact (TargetClock::read_ns()) until it is closed.
    /// Else they may be a tick late.
    [[nodiscard]] bool is_timing() const { return !always_ && phase_ == Phase::in_window && !copy_; }

    [[nodiscard]] double sampling_bytes() const;
    [[nodiscard]] bool is_windowed() const { return !always_; }
    [[nodiscard]] std::vector<trace::Window> take_closed() { return std::exchange(closed_, {}); }
    void finish(Moment now);

    struct Figures {
        double coverage = 0;  ///< share of own time in which the group was armed
        std::uint64_t windows = 0;
        std::uint64_t cut_windows = 0;     ///< ended early to protect the target
        std::uint64_t copied_windows = 0;  ///< spent by a shadow
        std::uint64_t dense_windows = 0;   ///< with hits too dense for the CPU clock to tell their time
    };
    [[nodiscard]] Figures figures(Moment now) const;
    /// Bytes per ns of own time, of the last windows.
    [[nodiscard]] double byte_rate() const {
        return long_own_.value > 0 ? long_bytes_.value / long_own_.value : 0;
    }
    /// Own time in which it has been armed, without the present stretch.
    [[nodiscard]] double armed_ns() const { return armed_ns_; }

  private:
    enum class Phase : std::uint8_t { before_window, in_window, after_window };

    void plan_span(Moment now);
    [[nodiscard]] double hit_cost_ns() const;
    [[nodiscard]] double plan_copy_span(double budget, Moment now);
    [[nodiscard]] bool sees_more_by_clock(double budget, double copy_span_ns) const;
    void open_window(Moment now);
    void end_by_clock(Moment now, double clocked, bool cut);
    /// A window that is over.
    struct Closed {
        std::uint64_t id = 0, start_wall_ns = 0, end_wall_ns = 0;
        double start = 0;  ///< in its span, own time
        double span_ns = 0;
        double hits = 0, bytes = 0;
        double clocked_ns = 0, off_ns = 0;  ///< own time by the clock, and how far that may be off
    };
    /// Own time of a window, and how far off it may be, relative, for all windows together.
    struct Length {
        double own_ns = 0;
        double spread = 0;
    };
    /// Whether the clock tells how long it was.
    [[nodiscard]] static bool is_clocked(const Closed& window);
    [[nodiscard]] Length length_of(const Closed& window) const;
    struct Gap {
        double ns = 0;
        double spread = 0;
    };
    [[nodiscard]] Gap dense_gap(double off_ns) const;
    [[nodiscard]] double cost_off_ns() const;
    void record(const Closed& window, Length length);
    void learn_density(double hits, double bytes, double own_ns);
    [[nodiscard]] double long_density() const;
    [[nodiscard]] bool prefers_clock();
    [[nodiscard]] bool is_clockable() const;
    [[nodiscard]] double dense_hits() const;
    [[nodiscard]] double window_cpu_ns(Moment now) const;
    [[nodiscard]] bool is_window_exact(Moment now) const {
        return window_exact_start_ != 0 && now.exact_ns != 0;
    }
    void begin_window(Moment now);
    void review_always(Moment now);
    void settle_always(Moment now);
    void begin_always(Moment now);
    [[nodiscard]] double stops_in_window() const;
    [[nodiscard]] bool has_enough() const;
    [[nodiscard]] double longest_ns() const;
    [[nodiscard]] bool is_surprised() const;
    [[nodiscard]] double clocked_ns(Moment now) const;

    static constexpr double kCopiesToJudge = 16;  ///< windows, to say how shadows fare, or how dense hits are

    Policy policy_;
    const StopClock& clock_;
    std::mt19937_64 random_;
    double budget_, always_budget_;
    double spent_ns_ = 0;
    bool always_;

    /// Hits and bytes per ns of own time in which the group is armed.
    RunningMean hits_, bytes_;
    RunningMean long_hits_, long_bytes_, long_own_;  ///< of more windows, each as long as it was
    double armed_ns_ = 0;
    double seen_hits_ = 0;  ///< of all windows

    // the present span, in own time
    Phase phase_ = Phase::before_window;
    double span_start_ = 0, span_ns_ = 0, window_start_ = 0, window_ns_ = 0;
    double window_opened_ = 0, window_stopped_ = 0, window_burnt_ = 0;
    std::uint64_t window_cpu_start_ = 0, window_exact_start_ = 0;
    double window_hits_ = 0, window_bytes_ = 0;
    std::uint64_t window_stops_start_ = 0;  ///< of the clock, when the window was armed
    std::uint64_t opened_wall_ns_ = 0, window_id_ = 0;
    std::vector<trace::Window> closed_;

    // the stretch in which the group is armed without a break
    double always_start_ = 0, always_hits_ = 0, always_bytes_ = 0;
    std::uint64_t always_wall_ns_ = 0;
    double reviewed_own_ = 0, reviewed_spent_ = 0, reviewed_hits_ = 0, reviewed_bytes_ = 0;

    bool fresh_ = false;  ///< no hit has arrived since the window was armed
    std::uint64_t surely_open_until_ns_ = 0;
    bool averages_ = false;                ///< the window is as long as hits are apart on average
    std::uint64_t no_average_before_ = 0;  ///< the first window that may be so again
    bool dense_ = false;  ///< the window is planned for hits so dense that the CPU clock can't tell its time
    // windows that are spent by a shadow
    bool copies_ = false, copy_ready_ = false;
    bool copy_ = false;          ///< the present window is one
    bool copy_pending_ = false;  ///< its result is awaited
    int failed_copies_ = 0;      ///< in a row
    int spoilt_ = 0;             ///< that went astray, in a row
    int missed_ = 0;             ///< threads that weren't to be had, in a row
    double user_share_ = 1;
    double copy_ns_ = 0;         ///< how long the next one is to be
    RunningMean complete_;       ///< how many of them went as far as they were to
    RunningMean worth_;          ///< how many of them saw some hits
    bool shadows_fail_ = false;  ///< the present windows by the clock are because of that
    RunningMean copied_own_, copied_hits_;
    std::uint64_t clock_windows_ = 0;  ///< so many more go by the clock before that is asked again
    double copy_span_ns_ = 0;          ///< what it stands for
    RunningMean copy_work_;            ///< what it takes of another processor, ns
    Moment work_saved_at_;
    double work_saved_ns_ = 0;  ///< of another processor's time, that hasn't been used
    RunningMean copy_cost_;     ///< what such a window costs, ns
    double carried_ns_ = 0;     ///< spans whose windows came to nothing: the next one stands for them too
    RunningMean pooled_own_, pooled_hits_;  ///< by the clock
    std::uint64_t cut_windows_ = 0, copied_windows_ = 0, dense_windows_ = 0;
};

}  // namespace memattach::probe
