#pragma once

#include <span>
#include <unordered_map>

#include "frame_shape.h"
#include "memattach/process/memory.h"
#include "thread_walk.h"

namespace memattach::python {

/// Free-threaded 3.14+ gives each thread its own copy of hot bytecode (co_tlbc, an array of pointers by the
/// frame's tlbc_index; entry 0 is the code object's own). Instruction pointers point into a copy; this knows
/// where each starts.
class BytecodeCopies {
  public:
    BytecodeCopies(const process::Memory& memory, const Layout& layout) : memory_(memory), layout_(layout) {}

    /// Sets the instruction offsets of out's frames, copies[i] being what frame i had. −1 where it can't be
    /// told.
    void place(const FrameShape& shape, std::span<const ThreadWalk::Copy> copies, RawStack& out);

  private:
    struct Key {
        std::uint64_t code;
        std::int32_t index;
        bool operator==(const Key&) const = default;
    };
    struct Hash {
        std::size_t operator()(const Key& key) const noexcept {
            return std::hash<base::Address>{}(base::Address(key.code)) ^ static_cast<std::size_t>(key.index);
        }
    };
    struct Copy {
        std::uint64_t start = 0;
        std::uint64_t bytes = 0;
    };
    [[nodiscard]] Copy read(const Key& key) const;

    const process::Memory& memory_;
    Layout layout_;
    std::unordered_map<Key, Copy, Hash> copies_;
};

}  // namespace memattach::python
