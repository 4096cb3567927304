/// The mathematics of the intervals, apart from where the numbers come from.
#pragma once

#include <cstdint>

namespace memattach::profile {

inline constexpr double kZ95 = 1.959963984540054;

/// Half width of the 95 % interval of a share of which `hits` out of `samples` were seen: the farther of the
/// two ends of Wilson's score interval. 0 ≤ hits ≤ samples; 0…1, and 1 where there are no samples.
[[nodiscard]] double share_ci95(std::uint64_t hits, std::uint64_t samples);

/// The 97.5 % quantile of Student's t with `freedom` degrees (≥ 1).
[[nodiscard]] double student_t95(double freedom);

/// P(Z ≤ z) of the standard normal distribution.
[[nodiscard]] double normal_cdf(double z);

}  // namespace memattach::profile
