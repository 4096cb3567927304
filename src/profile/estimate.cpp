#include "memattach/profile/estimate.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace memattach::profile {

double share_ci95(std::uint64_t hits, std::uint64_t samples) {
    if (samples == 0) return 1;
    const double n = static_cast<double>(samples);
    const double p = static_cast<double>(hits) / n;
    const double z2 = kZ95 * kZ95;
    const double centre = (p + z2 / (2 * n)) / (1 + z2 / n);
    const double half = kZ95 * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n);
    return std::max(centre + half - p, p - (centre - half));
}

double student_t95(double freedom) {
    constexpr std::array<double, 10> kSmall = {12.706, 4.303, 3.182, 2.776, 2.571,
                                               2.447,  2.365, 2.306, 2.262, 2.228};
    if (freedom <= 1) return kSmall[0];
    if (freedom <= 10) {
        const auto below = static_cast<std::size_t>(freedom);
        const double part = freedom - static_cast<double>(below);
        return below == 10 ? kSmall[9] : kSmall[below - 1] * (1 - part) + kSmall[below] * part;
    }
    // Cornish–Fisher expansion in 1/freedom; within 0.001 of the tables from 10 degrees on.
    const double z = kZ95;
    const double z3 = z * z * z;
    const double z5 = z3 * z * z;
    return z + (z3 + z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom * freedom);
}

double normal_cdf(double z) {
    return 0.5 * std::erfc(-z / std::sqrt(2.0));
}

}  // namespace memattach::profile
