#pragma once

#include <functional>
#include <span>
#include <vector>

#include "memattach/trace/frame.h"

namespace memattach::probe {

/// One native frame as merging sees it.
struct NativeFrame {
    trace::Frame frame;
    bool eval_loop = false;    ///< of the interpreter's eval loop: stands for a run of Python frames
    bool interpreter = false;  ///< of the interpreter's own code
    bool unnamed = false;      ///< of a file without symbols: a run of these is told as one
};

/// One native and one Python stack of the same thread as one. Both innermost first; `entries[i]` says that
/// Python frame i is the outermost of a run of the eval loop, `entries` may be shorter than `python` (markers
/// follow).
///
/// Each eval-loop frame is replaced by its run of Python frames. Of the interpreter's own frames those inside
/// the innermost run are kept (what the interpreter is doing: `list_sort`) and those between two runs are
/// dropped, as they are how calls are made. Where the two stacks, which were taken some microseconds apart,
/// don't have the same number of runs, they are matched at their outer ends, where they agree longest.
trace::Stack merge_stacks(std::span<const NativeFrame> native, std::span<const trace::Frame> python,
                          const std::vector<bool>& entries);

}  // namespace memattach::probe
