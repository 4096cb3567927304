#pragma once

#include <x86intrin.h>

#include <cstdint>

#include "memattach/base/clock.h"

namespace memattach::probe {

/// The processor's time stamp counter, in ns. It counts at one rate and on all processors alike since 2008
/// (Intel SDM vol. 3, 18.17.1 "Invariant TSC"; AMD64 APM vol. 2, 13.2.4).
class TickClock {
  public:
    /// Takes kMeasureNs.
    TickClock() {
        const Both from = read_both();
        while (base::monotonic_ns() - from.ns < kMeasureNs) {
        }
        const Both to = read_both();
        if (to.ticks > from.ticks)
            ns_per_tick_ = static_cast<double>(to.ns - from.ns) / static_cast<double>(to.ticks - from.ticks);
    }
    [[nodiscard]] double ns(std::uint64_t ticks) const { return ns_per_tick_ * static_cast<double>(ticks); }

  private:
    struct Both {
        std::uint64_t ns = 0, ticks = 0;
    };
    /// At the same moment: nothing came in between.
    static Both read_both() {
        constexpr int kTries = 100;
        constexpr std::uint64_t kApartNs = 1'000;
        Both both;
        for (int i = 0; i < kTries; ++i) {
            both.ns = base::monotonic_ns();
            both.ticks = __rdtsc();
            if (base::monotonic_ns() - both.ns < kApartNs) break;
        }
        return both;
    }

    static constexpr std::uint64_t kMeasureNs = 1'000'000;
    double ns_per_tick_ = 0.4;
};

}  // namespace memattach::probe
