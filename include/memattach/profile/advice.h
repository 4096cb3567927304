#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace memattach::profile {

/// A line of the same file by its number; empty where there is none.
using LineOfFile = std::function<std::string(std::uint32_t)>;

/// What usually makes a line that allocates much allocate less, in one sentence, for the few patterns that
/// its text alone gives away: a list comprehension, readlines(), read_csv() of a whole file, += on a string
/// in a loop, sorted(). Empty for all others. Knows nothing of types: it says what such code does, not that
/// it is wrong.
[[nodiscard]] std::string memory_advice(std::uint32_t line, const LineOfFile& line_of_file);

}  // namespace memattach::profile
