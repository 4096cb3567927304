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

/// How much longer a run takes because it begins with cold caches.
///
/// Windows begin at random moments: on average a program allocates as much in the first 20 µs as in the next.
/// What is missing in the first is what they lost at their beginning.
class ColdStart {
  public:
    /// A way's marks (own time of each, ns), `every` allocations apart. Ways that are too short say nothing.
    void add(std::span<const double> marks_ns, double every) {
        constexpr double kKeeps = 0.995;
        if (marks_ns.empty() || marks_ns.back() < 3 * kPartNs) return;
        const auto until = [&](double ns) {
            return every * static_cast<double>(std::upper_bound(marks_ns.begin(), marks_ns.end(), ns) -
                                               marks_ns.begin());
        };
        // Behind a mark there have been half as many as up to the next, on average.
        const double first = until(kPartNs) + (every - 1) / 2;
        const double second = until(2 * kPartNs) - until(kPartNs);
        const double both = std::max(first + second, 1.0);
        // Each way counts alike, whatever it allocates.
        first_ = kKeeps * first_ + first / both;
        second_ = kKeeps * second_ + second / both;
    }
    [[nodiscard]] double ns() const {
        constexpr double kMostNs = 12'000;
        return std::clamp(kPartNs * (1 - first_ / second_), 0.0, kMostNs);
    }

  private:
    static constexpr double kPartNs = 20'000;
    /// As if some had been seen already, which had lost 2 µs.
    static constexpr double kPrior = 12;
    double first_ = kPrior * 0.45, second_ = kPrior * 0.5;
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
    [[nodiscard]] double warm_ns(double ns) const { return std::max(ns - cold_.ns(), 0.0); }
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
