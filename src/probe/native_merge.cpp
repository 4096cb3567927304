#include "memattach/probe/native_merge.h"

#include <algorithm>

namespace memattach::probe {

trace::Stack merge_stacks(std::span<const NativeFrame> native, std::span<const trace::Frame> python,
                          const std::vector<bool>& entries) {
    // Where each run of Python frames ends (one past its outermost frame), innermost run first.
    std::vector<std::size_t> run_ends;
    for (std::size_t i = 0; i < python.size() && i < entries.size(); ++i)
        if (entries[i]) run_ends.push_back(i + 1);
    if (run_ends.empty()) run_ends.push_back(python.size());
    run_ends.back() = python.size();  // markers go with the outermost run
    std::size_t loops = 0;
    for (const NativeFrame& frame : native) loops += frame.eval_loop ? 1 : 0;

    trace::Stack out;
    // Whichever has more has them at the inner end. Inner runs without a loop join the innermost one that
    // has.
    std::size_t skip_loops = loops > run_ends.size() ? loops - run_ends.size() : 0;
    std::size_t run = run_ends.size() > loops ? run_ends.size() - loops : 0;
    std::size_t next = 0;
    const auto take_python_to = [&](std::size_t end) {
        for (; next < end; ++next) out.push_back(python[next]);
    };
    bool seen_loop = false;
    for (const NativeFrame& frame : native) {
        if (frame.eval_loop) {
            if (skip_loops > 0) {
                --skip_loops;
                continue;
            }
            seen_loop = true;
            if (run < run_ends.size()) take_python_to(run_ends[run++]);
        } else if (!seen_loop || !frame.interpreter) {
            if (frame.unnamed && !out.empty() && out.back() == frame.frame) continue;
            out.push_back(frame.frame);
        }
    }
    take_python_to(python.size());
    // What is outside of the outermost run (main, thread start-up) says nothing; drop it where there is
    // Python.
    if (!python.empty()) {
        const auto last = std::find(out.rbegin(), out.rend(), python.back());
        out.erase(last.base(), out.end());
    }
    return out;
}

}  // namespace memattach::probe
