#pragma once

#include <optional>
#include <string>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"

namespace memattach::python {

/// What threading.Thread.name says of the thread, without stopping it; nothing where it can't be told: the
/// main thread, threads that weren't started by the `threading` module, versions that aren't known. The
/// kernel has names too: the process's own up to 3.13, from 3.14 on what fits into 15 bytes of the one at the
/// start.
///
/// The outermost frame of such a thread is Thread._bootstrap(self); `self._name` is looked up as the
/// interpreter would. Costs a few dozen small reads.
std::optional<std::string> read_thread_name(const process::Memory& memory, const Runtime& runtime,
                                            base::Address thread_state);

}  // namespace memattach::python
