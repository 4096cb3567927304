#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "memattach/profile/ledger.h"
#include "memattach/profile/profile.h"

namespace memattach::profile {

struct LeakCandidate {
    std::string path, function, code;
    std::uint32_t line = 0;
    const MemoryFigures* memory = nullptr;
};

struct LeakContext {
    double duration_s = 0;
    std::optional<double> limit_bytes;  ///< the memory limit, and
    std::optional<double> rss_bytes;    ///< what the process has of it now
};

/// Lines that keep more and more memory, fastest first, at most ten. A line is a suspect where
///  - its live bytes grow over the session: the interval of that slope excludes zero, or nearly all groups of
///    windows agree that it grows (SampleSum::chance_of_sign);
///  - they still grow in the second half and the last quarter (a cache that has filled up doesn't; what goes
///    up and down has a slope that its own scatter explains). A line of which nearly no block has ended grows
///    as long as it allocates;
///  - blocks from the first three quarters survive (where only young blocks live, the line is busy, not
///    leaking).
/// Sessions under five seconds have no suspects: all memory is young.
[[nodiscard]] std::vector<Leak> find_leaks(const std::vector<LeakCandidate>& candidates,
                                           const AllWindowTimes& times, const LeakContext& context);

}  // namespace memattach::profile
