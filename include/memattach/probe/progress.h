/// How much of a program's own time passed in a stretch in which it was stopped thousands of times, told by
/// the program itself.
///
/// A stop costs a thread some 4 µs of its own CPU time and leaves its caches cold; where 100 ns of its own
/// lie between two stops no subtraction of averages finds them. But a loop that allocates also counts
/// something: the index of its iterator, a local number, the length of what it fills. Such words lie in the
/// frames of the thread or in the objects that the frames hold, and can be read without stopping it. Their
/// speed per own time is measured just before a window, undisturbed; how far they moved in the window says
/// how much of own time it was.
///
///     a, b, c: snapshots before the window, some hundred microseconds apart
///     d: when everything is armed; e: when the window is closed
///     own = (e − d) / ((c − a) / (cpu of c − cpu of a)), for a word that moved evenly from a to c
///
/// Which words count is not known but found: those that moved the same way in all stretches and as fast from
/// a to b as from b to c. Words that move with the wall clock say that more time passed than the CPU clock
/// has and are left out.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"

namespace memattach::probe {

struct ProgressWord {
    std::uint64_t place = 0;  ///< the same place in two snapshots has the same number; ascending
    std::uint64_t value = 0;
};

struct ProgressSnapshot {
    std::uint64_t cpu_ns = 0;  ///< the process's CPU clock
    std::vector<ProgressWord> words;
};

/// Reads the words of a thread's innermost frames: about 40 µs. `state`: its PyThreadState.
void read_progress(const process::Memory& memory, const python::Layout& layout, base::Address state,
                   ProgressSnapshot& out);

struct OwnTime {
    double own_ns = 0;
    double relative_sd = 0;
};

/// Nothing where no word moved evenly or far enough. `most_ns`: what the CPU clock says at most.
std::optional<OwnTime> own_time_between(const ProgressSnapshot& a, const ProgressSnapshot& b,
                                        const ProgressSnapshot& c, const ProgressSnapshot& d,
                                        const ProgressSnapshot& e, double most_ns);

}  // namespace memattach::probe
