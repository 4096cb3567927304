#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "memattach/probe/eval_loop.h"
#include "memattach/probe/native_merge.h"
#include "memattach/probe/native_unwind.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/python/reader.h"
#include "memattach/trace/frame.h"

namespace memattach::probe {

/// Gives a process's samples their native frames: unwinds, names and merges them with the Python frames.
class NativeFrames {
  public:
    NativeFrames(int pid, const python::Runtime& runtime, const process::Memory& memory,
                 trace::FunctionTable& functions);

    /// `entries` is what CodeCache::entries() said of `python`, frame by frame. Both may be empty.
    trace::Stack merge(const std::array<std::uint64_t, kPerfRegisterCount>& registers,
                       std::span<const std::byte> stack, std::span<const trace::Frame> python,
                       const std::vector<bool>& entries);

    [[nodiscard]] std::uint64_t merged() const { return merged_; }
    /// Of these, how many had not as many eval loops as runs of Python frames.
    [[nodiscard]] std::uint64_t mismatched() const { return mismatched_; }

  private:
    const NativeFrame& frame_at(base::Address address);

    const process::Memory& memory_;
    const python::Runtime& runtime_;
    trace::FunctionTable& functions_;
    NativeUnwinder unwinder_;
    std::unordered_map<base::Address, NativeFrame> frames_;
    bool eval_loop_sought_ = false;
    std::optional<CodeRange> eval_loop_;
    std::vector<NativeFrame> native_;
    std::uint64_t merged_ = 0, mismatched_ = 0;
};

}  // namespace memattach::probe
