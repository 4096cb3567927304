#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "memattach/probe/shadow.h"
#include "memattach/probe/stop_clock.h"
#include "shadow_pages.h"
#include "shadow_sampler.h"
#include "shadow_space.h"

namespace memattach::probe {

/// How much longer a run takes because it begins with cold caches, and with branch predictors that have seen
/// other code.
///
/// Windows begin at random moments: on average a program allocates as much in the first microseconds as in
/// those that follow. What is missing is what they lost: of nine parts of 20 µs the first had 0.66 to 0.83 of
/// what the last four had, and the next four still 0.94, in three programs on Sapphire Rapids.
class ColdStart {
  public:
    /// A way's marks (own time of each, ns), `every` allocations apart. Ways that are too short say nothing.
    void add(std::span<const double> marks_ns, double every) {
        if (marks_ns.empty() || marks_ns.back() < kWarmNs + kLeastNs) return;
        // Behind a mark there have been half as many as up to the next, on average.
        const auto until = [&](double ns) {
            return every * static_cast<double>(std::upper_bound(marks_ns.begin(), marks_ns.end(), ns) -
                                               marks_ns.begin()) +
                   (every - 1) / 2;
        };
        const double end_ns = marks_ns.back() - 1;  // the last mark is where it is because it ends there
        // Each way counts alike, whatever it allocates.
        const double whole = std::max(until(end_ns), 1.0) / end_ns;
        const double warm = (until(end_ns) - until(kWarmNs)) / (end_ns - kWarmNs) / whole;
        cold_.add(until(kColdNs) / kColdNs / whole, warm);
        tepid_.add((until(kWarmNs) - until(kColdNs)) / (kWarmNs - kColdNs) / whole, warm);
    }
    /// Of a run's first `ns`.
    [[nodiscard]] double lost_ns(double ns) const {
        constexpr double kMostCold = 0.6, kMostTepid = 0.2;
        return cold_.missing(kMostCold) * std::min(ns, kColdNs) +
               tepid_.missing(kMostTepid) * std::clamp(ns - kColdNs, 0.0, kWarmNs - kColdNs);
    }

  private:
    static constexpr double kColdNs = 20'000, kWarmNs = 100'000, kLeastNs = 30'000;
    /// How often a program allocates in a part, and where it is warm, as if some ways had been seen already.
    struct Rates {
        double part = 0, warm = 0;

        void add(double in_part, double in_warm) {
            constexpr double kKeeps = 0.995;
            part = kKeeps * part + in_part;
            warm = kKeeps * warm + in_warm;
        }
        [[nodiscard]] double missing(double most) const { return std::clamp(1 - part / warm, 0.0, most); }
    };
    Rates cold_{12 * 0.85, 12}, tepid_{30 * 0.97, 30};
};

/// A run of a shadow, and what it met.
struct Timed {
    ShadowSpace::Run run;
    double own_ns = 0;           ///< up to its end, or to the mark that it was to end at
    double all_allocations = 0;  ///< of both groups
    /// By group, where it was a run to count: else 0.
    std::array<double, 2> hits{}, allocations{};
    std::size_t missed = 0;  ///< pages
    bool is_cut = false;     ///< it can't go on: a system call, a page that can't be had

    /// It had all pages that can be had.
    [[nodiscard]] bool is_clean() const {
        return missed == (run.end == ShadowSpace::End::missing_page ? 1U : 0U);
    }
    [[nodiscard]] double all_hits() const { return hits[0] + hits[1]; }
};

/// The way that a state takes in so much of the program's own time.
struct Way {
    Timed full;             ///< a run that went it, to count
    double own_ns = 0;      ///< how long it is: of the program's own time
    bool is_whole = false;  ///< it is as long as it was to be
    bool is_known = false;  ///< there was a run that missed no page
    bool is_gone = false;   ///< the shadow has ended
    /// The fastest run, which may have gone farther: when it was at its marks, in ShadowTiming's time.
    std::vector<double> marks_ns;
    std::uint64_t mark_every = 1;  ///< allocations
    std::size_t missed = 0;        ///< pages, by the first run
};

/// Runs a state again and again: how far it gets in so much of its own time, and how fast.
///
/// The stubs note the time every few allocations (ShadowCounters::marks), so that a run says how long
/// it took to each of them, without what lies before its first instruction and behind the last that counts,
/// and that what it waited for can be left out. Times are told as if the processor were always as fast as it
/// was in the session's first state (log_slowness()).
class ShadowTiming {
  public:
    ShadowTiming(ShadowShared& shared, ShadowCounters& counters, ShadowPages& pages, ShadowSampler& sampler)
        : shared_(shared), counters_(counters), pages_(pages), sampler_(sampler) {}

    /// Until the next call.
    void set_space(ShadowSpace* space) { space_ = space; }
    /// `time_ns`: what the runs read from the monotonic clock.
    void begin_state(std::uint64_t time_ns);
    /// How much slower a processor of which log_slowness() said `there` is than what the shadow's time is
    /// told in, its logarithm.
    [[nodiscard]] double log_slower(double there) const { return there - usual_slowness_; }
    /// The state that was submitted, to be run without marks.
    bool restore_for_sampling();
    /// The way of the state in `length_ns` of the program's own time, which is `factor` times the shadow's.
    /// `at_end`: when the first run is over, which finds most pages.
    [[nodiscard]] Way find_way(double length_ns, double factor, const std::function<void()>& at_end);
    /// It went astray in memory that had changed when it was read: what it did up to there is what the thread
    /// did. Not known where that was next to nothing.
    [[nodiscard]] Way way_before_late(double length_ns, double factor);
    /// Up to which mark of a way processors can be compared by: some 20 to 200 µs; 0: none.
    [[nodiscard]] static std::size_t comparable(const Way& way);
    /// What the second half of a way up to a mark takes, by the fastest of a few runs, where this process and
    /// the shadow are now; ns. Nothing where it isn't gone the same way.
    [[nodiscard]] std::optional<double> time_to(const Way& way, std::size_t marks);

  private:
    bool restore();
    ShadowSpace::Run go(double own_ns, std::size_t marks = 0, const std::function<void()>& at_end = {});
    void note_slowness();
    Timed timed_run(double length_ns, std::size_t marks = 0, const std::function<void()>& at_end = {});
    bool count(Way& way, double length_ns, std::size_t marks);
    [[nodiscard]] std::optional<Timed> fastest(const Timed& first, std::size_t marks, double length_ns,
                                               bool thoroughly);
    void learn(const Timed& fastest);
    void set_marks(std::uint64_t every);
    bool end_at(Way& way, double length_ns, double behind_ns, double factor);
    void end_with_mark(Way& way, std::size_t marks, double length_ns, double factor);
    bool cut_at(Way& way, double length_ns, double factor);
    [[nodiscard]] std::size_t marks_until(const Way& way, double length_ns, double factor) const;
    [[nodiscard]] double warm_ns(double ns) const { return ns - cold_.lost_ns(ns); }
    bool bring(std::uint64_t page);

    ShadowShared& shared_;
    ShadowCounters& counters_;
    ShadowPages& pages_;
    ShadowSampler& sampler_;
    ShadowSpace* space_ = nullptr;
    ColdStart cold_;
    /// log_slowness() of the processor: of the first state, and before and behind the present run.
    double usual_slowness_ = 0, slowness_before_ = 0, slowness_behind_ = 0;
    RunningMean slowness_{4, 1};  ///< of a state's first run, compared with the fastest
    RunningMean soon_{1, 1};      ///< of the fastest of all runs, compared with the fastest of a few
    std::uint64_t states_ = 0;
    bool thorough_ = true;  ///< in this state: as many runs as gain something
    RunningMean per_ns_;    ///< allocations
    std::uint64_t mark_every_ = 1;
    std::vector<double> first_marks_ns_;  ///< of the state's first run
    std::uint64_t before_late_ = 0;  ///< allocations of the state before the first page that was read late
};

}  // namespace memattach::probe
