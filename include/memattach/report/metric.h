#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "memattach/profile/profile.h"

namespace memattach::report {

/// What a stack can be weighed by.
enum class Metric : std::uint8_t { cpu_samples, wait_samples, alloc_bytes, live_bytes, peak_bytes };

/// "cpu", "wait", "allocated", "live", "peak"
[[nodiscard]] std::string_view name_of(Metric metric);

/// The weight of `stack`; 0 where the lens was off.
[[nodiscard]] double weight_of(const profile::StackRow& stack, Metric metric);

/// Those of which the profile has anything, CPU first.
[[nodiscard]] std::vector<Metric> metrics_of(const profile::Profile& profile);

}  // namespace memattach::report
