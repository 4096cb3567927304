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
        const std::uint64_t from_ns = base::monotonic_ns();
        const std::uint64_t from_ticks = __rdtsc();
        std::uint64_t to_ns = from_ns;
        while (to_ns - from_ns < kMeasureNs) to_ns = base::monotonic_ns();
        const std::uint64_t to_ticks = __rdtsc();
        if (to_ticks > from_ticks)
            ns_per_tick_ = static_cast<double>(to_ns - from_ns) / static_cast<double>(to_ticks - from_ticks);
    }
    [[nodiscard]] double ns(std::uint64_t ticks) const { return ns_per_tick_ * static_cast<double>(ticks); }

  private:
    static constexpr std::uint64_t kMeasureNs = 1'000'000;
    double ns_per_tick_ = 0.4;
};

}  // namespace memattach::probe
