#pragma once

#include <string>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"

namespace memattach::python {

enum class Sanity {
    confirmed,     ///< interpreter, threads, a frame and its code object are what the layout says
    no_frames,     ///< interpreter and threads are; no thread had a frame to look at
    not_started,   ///< no interpreter or no thread yet (or no more)
    contradicted,  ///< something isn't where the layout says it is
};

/// Walks from _PyRuntime to a code object along `layout` and checks that each structure says what it should:
/// thread states lead back to their interpreter, the code object's type is called "code", its file name is a
/// string. The target runs meanwhile: a contradiction counts only after several tries. `why` names it.
Sanity check_layout(const process::Memory& memory, base::Address runtime, const Layout& layout,
                    std::string& why);

}  // namespace memattach::python
