#pragma once

namespace memattach::probe {

/// How long this processor takes, at this moment, for a fixed piece of work: the logarithm of it, times how
/// much an interpreter is slowed by what slows that. The unit means nothing; two processors, or two moments,
/// compare. Some 10 µs.
///
/// What the host of a virtual machine runs on the other half of a core leaves some code alone and makes other
/// code half as fast: that which has much to do at a time. An interpreter has, so the work is like that:
/// straight code whose instructions don't wait for each other, over half of the first-level cache. Of two
/// Python programs whose speed swung by 0.23 to 0.33 (standard deviation, logarithms, Sapphire Rapids with a
/// busy neighbour) 0.10 to 0.15 stayed with this taken off. A loop of decisions and dependent steps is slowed
/// by a third as much, and left 0.14 to 0.21.
double log_slowness();

}  // namespace memattach::probe
