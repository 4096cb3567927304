#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "memattach/base/address.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

struct CodeRange {
    base::Address start, end;
    [[nodiscard]] bool contains(base::Address a) const { return a >= start && a < end; }
};

/// The machine code of the interpreter's eval loop, in builds whose symbols don't tell.
///
/// `_PyEval_EvalFrameDefault` is exported by every build, but compilers split it: in Debian's CPython 3.13
/// and later that symbol covers 2 KB, and the 80 KB that run the bytecode are a part without a symbol. Unwind
/// tables do list that part, as the largest function of the interpreter by far (77 to 84 KB, the next ones 33
/// to 39 KB, in Debian's 3.13 to 3.15).
///
/// Reads the search table at `eh_frame_header` (PT_GNU_EH_FRAME of the interpreter's module). Nothing where
/// the table is in a form that no linker writes, or where no function between `text_start` and `text_end`
/// stands out.
std::optional<CodeRange> find_eval_loop(const process::Memory& memory, base::Address eh_frame_header,
                                        base::Address text_start, base::Address text_end);

}  // namespace memattach::probe
