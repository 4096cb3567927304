#pragma once

#include <cstdint>

namespace memattach::base {

/// CLOCK_MONOTONIC in nanoseconds: the one clock of samples, allocations, perf records and reports.
std::uint64_t monotonic_ns();

}  // namespace memattach::base
