#include "memattach/probe/cpu_native.h"

#include <algorithm>

namespace memattach::probe {
namespace {

constexpr std::size_t kMaxCachedFrames = 200'000;

}  // namespace

NativeFrames::NativeFrames(int pid, const python::Runtime& runtime, const process::Memory& memory,
                           trace::FunctionTable& functions)
    : memory_(memory), runtime_(runtime), functions_(functions), unwinder_(pid, memory) {}

const NativeFrame& NativeFrames::frame_at(base::Address address) {
    const auto found = frames_.find(address);
    if (found != frames_.end()) return found->second;
    if (frames_.size() >= kMaxCachedFrames) frames_.clear();
    const NativeUnwinder::Symbol symbol = unwinder_.symbol_at(address);
    NativeFrame frame;
    frame.interpreter = address >= runtime_.text_start && address < runtime_.text_end;
    if (frame.interpreter && !eval_loop_sought_) {
        eval_loop_sought_ = true;
        if (const auto header = unwinder_.eh_frame_header(address))
            eval_loop_ = find_eval_loop(memory_, *header, runtime_.text_start, runtime_.text_end);
    }
    // The symbol is exported by every CPython since 3.6, but need not cover all of the loop.
    frame.eval_loop =
        frame.interpreter && (symbol.name.starts_with("_PyEval_EvalFrameDefault") ||
                              (symbol.name.empty() && eval_loop_ && eval_loop_->contains(address)));
    frame.unnamed = symbol.name.empty();
    frame.frame.function = functions_.intern(
        {symbol.name.empty() ? "<native>" : symbol.name, symbol.module, 0, trace::FunctionKind::native});
    return frames_.emplace(address, frame).first->second;
}

trace::Stack NativeFrames::merge(const std::array<std::uint64_t, kPerfRegisterCount>& registers,
                                 std::span<const std::byte> stack, std::span<const trace::Frame> python,
                                 const std::vector<bool>& entries) {
    native_.clear();
    for (const base::Address address : unwinder_.unwind(registers, stack))
        native_.push_back(frame_at(address));
    const auto loops =
        std::count_if(native_.begin(), native_.end(), [](const auto& f) { return f.eval_loop; });
    ++merged_;
    const auto runs = std::count(entries.begin(), entries.end(), true);
    if (native_.size() >= kMaxNativeFrames && loops < runs) {
        // The outer end of the native stack is missing: match them at the inner ends, and the Python frames
        // further out stand for themselves.
        std::size_t end = 0;
        for (auto left = loops; left > 0; ++end) left -= entries[end] ? 1 : 0;
        const auto at = static_cast<std::ptrdiff_t>(end);
        trace::Stack merged =
            merge_stacks(native_, python.first(end), {entries.begin(), entries.begin() + at});
        merged.insert(merged.end(), python.begin() + at, python.end());
        return merged;
    }
    if (loops != runs) ++mismatched_;
    return merge_stacks(native_, python, entries);
}

}  // namespace memattach::probe
