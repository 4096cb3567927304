#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "shadow_space.h"

namespace memattach::probe {

/// How much longer a run takes because it begins with cold caches.
///
/// Windows begin at random moments: on average a program allocates as much in a second one as in a first one.
/// So of all runs together, and of all that went half as far, hits and own time are in the same proportion,
/// but for what each of them lost at its beginning.
class ColdStart {
  public:
    void add(double own_ns, double hits, double half_own_ns, double half_hits) {
        constexpr double kKeeps = 0.99;
        runs_ = kKeeps * runs_ + 1;
        own_ = kKeeps * own_ + own_ns;
        hits_ = kKeeps * hits_ + hits;
        half_own_ = kKeeps * half_own_ + half_own_ns;
        half_hits_ = kKeeps * half_hits_ + half_hits;
    }
    /// It changes slowly: every fourth run is enough.
    [[nodiscard]] bool wants_more(int run) const { return runs_ < kKnownRuns || run % 4 == 0; }
    /// `switch_ns`: what letting the shadow go and stopping it takes here.
    [[nodiscard]] double ns(double switch_ns) const {
        constexpr double kUnknownNs = 8'000, kMostNs = 30'000, kLeastHits = 400;
        if (runs_ < kKnownRuns || hits_ - half_hits_ < kLeastHits) return std::max(kUnknownNs, switch_ns);
        return std::clamp((half_own_ * hits_ - own_ * half_hits_) / (runs_ * (hits_ - half_hits_)), 0.0,
                          std::max(kMostNs, 2 * switch_ns));
    }

  private:
    static constexpr double kKnownRuns = 8;
    double runs_ = 0, own_ = 0, hits_ = 0, half_own_ = 0, half_hits_ = 0;
};

/// A run of a shadow, and what it met.
struct Timed {
    ShadowSpace::Run run;
    double own_ns = 0;
    std::array<double, 2> hits{}, allocations{};  ///< by group
    std::size_t missed = 0;                       ///< pages
    bool is_cut = false;                          ///< it can't go on: a system call, a page that can't be had

    [[nodiscard]] double all_hits() const { return hits[0] + hits[1]; }
};
/// Where a run is to end: behind so many allocations of a group. 0: nowhere.
struct Goal {
    std::size_t group = 0;
    double allocations = 0;
};

/// The way that a state takes, and a run that went it fast.
struct Way {
    Timed full;
    Goal goal;
    bool has_not_moved = false;  ///< nothing of it was executed
};

}  // namespace memattach::probe
