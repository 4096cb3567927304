#pragma once

#include <cstdint>

namespace memattach::probe {

/// How long this processor takes, at this moment, for a fixed piece of work (some µs; ticks of the time stamp
/// counter): a small interpreter's loop, which is slowed as an interpreter is by what the host of a virtual
/// machine runs next to it. The fastest of some runs, which take some 15 µs together. The unit means nothing;
/// two processors, or two moments, compare.
double time_fixed_work();

}  // namespace memattach::probe
