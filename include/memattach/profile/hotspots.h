#pragma once

#include <vector>

#include "memattach/profile/profile.h"

namespace memattach::profile {

/// The lines worth looking at first: at most ten for each of "memory" (share of allocated bytes) and "cpu"
/// (share of the samples on CPU), ranked by share over both. A line is one only where it holds at least a
/// hundredth of the total and its 95 % interval excludes zero.
[[nodiscard]] std::vector<Hotspot> find_hotspots(const Profile& profile);

}  // namespace memattach::profile
