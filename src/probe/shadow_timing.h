#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>

#include "memattach/probe/shadow.h"
#include "memattach/probe/stop_clock.h"
#include "shadow_pages.h"
#include "shadow_sampler.h"
#include "shadow_space.h"

namespace memattach::probe {

/// How much longer a run takes because it begins with cold caches.
///
/// Windows begin at random moments: on average a program allocates as much in a second one as in a first one.
/// So of all runs together, and of all as they were half as far, allocations and own time are in the same
/// proportion, but for what each of them lost at its beginning.
class ColdStart {
  public:
    void add(double own_ns, double allocations, double half_own_ns, double half_allocations) {
        constexpr double kKeeps = 0.99;
        runs_ = kKeeps * runs_ + 1;
        own_ = kKeeps * own_ + own_ns;
        allocations_ = kKeeps * allocations_ + allocations;
        half_own_ = kKeeps * half_own_ + half_own_ns;
        half_allocations_ = kKeeps * half_allocations_ + half_allocations;
    }
    [[nodiscard]] double ns() const {
        constexpr double kUnknownNs = 3'000, kMostNs = 30'000, kLeast = 200;
        const double rest = allocations_ - half_allocations_;
        if (runs_ < kKnownRuns || rest < kLeast) return kUnknownNs;
        return std::clamp((half_own_ * allocations_ - own_ * half_allocations_) / (runs_ * rest), 0.0,
                          kMostNs);
    }

  private:
    static constexpr double kKnownRuns = 8;
    double runs_ = 0, own_ = 0, allocations_ = 0, half_own_ = 0, half_allocations_ = 0;
};

/// A run of a shadow, and what it met.
struct Timed {
    ShadowSpace::Run run;
    double own_ns = 0;                            ///< up to its end, or to the mark that it was to end at
    std::array<double, 2> hits{}, allocations{};  ///< by group
    std::size_t missed = 0;                       ///< pages
    bool is_cut = false;                          ///< it can't go on: a system call, a page that can't be had

    /// It had all pages that can be had.
    [[nodiscard]] bool is_clean() const {
        return missed == (run.end == ShadowSpace::End::missing_page ? 1U : 0U);
    }
    [[nodiscard]] double all_hits() const { return hits[0] + hits[1]; }
    [[nodiscard]] double all_allocations() const { return allocations[0] + allocations[1]; }
};

/// The way that a state takes, and a run that went it fast.
struct Way {
    Timed full;
    std::size_t marks = 0;  ///< it ends at this one; 0: elsewhere
    /// There was a run that missed no page.
    bool is_known = false;
};

/// Runs a state again and again: how far it gets in so much of its own time, and how fast.
///
/// The stubs note the time at each so manieth allocation (ShadowCounters::marks), so that a run says how long
/// it took to each of them, without what lies before its first instruction and behind the last that counts,
/// and that what it waited for can be left out.
class ShadowTiming {
  public:
    ShadowTiming(ShadowShared& shared, ShadowCounters& counters, ShadowPages& pages, ShadowSampler& sampler)
        : shared_(shared), counters_(counters), pages_(pages), sampler_(sampler) {}

    /// Until the next call.
    void set_space(ShadowSpace* space) { space_ = space; }
    void begin_state();
    /// The state that was submitted, to be run without marks.
    bool restore_for_sampling();
    /// The way of the state in about so much of its own time, gone as fast as can be. `at_end`: when the
    /// first run is over, which finds most pages.
    [[nodiscard]] Way find_way(double length_ns, const std::function<void()>& at_end);
    /// It went astray in memory that had changed when it was read: what it did up to there is what the thread
    /// did. Not known where that was next to nothing.
    [[nodiscard]] Way way_before_late(double length_ns);
    /// How many times as long as it took the beginning of a way takes now, by the fastest of a few runs.
    /// Nothing where it isn't gone the same way, or too short.
    [[nodiscard]] std::optional<double> compare(const Way& way);
    /// What a way's time is without its cold start.
    [[nodiscard]] double warm_ns(const Way& way) const;

  private:
    bool restore();
    ShadowSpace::Run go(double own_ns, std::size_t marks = 0, const std::function<void()>& at_end = {});
    Timed timed_run(double length_ns, std::size_t marks = 0, const std::function<void()>& at_end = {});
    [[nodiscard]] std::optional<Timed> fastest(const Timed& first, std::size_t marks, double length_ns);
    void learn(const Timed& fastest, double first_ns);
    bool bring(std::uint64_t page);

    ShadowShared& shared_;
    ShadowCounters& counters_;
    ShadowPages& pages_;
    ShadowSampler& sampler_;
    ShadowSpace* space_ = nullptr;
    ColdStart cold_;
    RunningMean slowness_{4, 1};  ///< of a state's first run, compared with the fastest
    RunningMean per_ns_;          ///< allocations
    std::uint64_t mark_every_ = 1;
    std::size_t before_late_ = 0;  ///< marks of the present state before the first page that was read late
};

}  // namespace memattach::probe
