#pragma once

#include <cstdint>
#include <vector>

#include "memattach/process/memory.h"

namespace memattach::python {

/// The places where a thread's frames lay when it was last walked, as few stretches of memory as possible:
/// each piece of a process_vm_readv costs about as much as a further page in a piece that is read anyway
/// (0.35 and 0.25 µs, measured on Linux 6.18), so neighbours are merged as long as no page lies between them.
///
///     data stack   [frame 0 … frame 1 …  frame 29 |slack to the page's end]      one piece
///     C stack      [entry frame]                                                 one piece
class FrameWindow {
  public:
    /// Sets the places anew: `bytes` from each address on, in any order. From `slack_from` on the rest of its
    /// page is read too (bounded): that is where the next call's frame will be.
    void plan(std::vector<std::uint64_t>& addresses, std::uint32_t bytes, std::uint64_t slack_from);
    void clear();

    /// Appends the pieces, by ascending address; their bytes land here.
    void append_pieces(std::vector<process::Memory::Piece>& pieces);
    [[nodiscard]] std::size_t piece_count() const { return spans_.size(); }

    /// `bytes` bytes read from `address`, or null where they are outside of what was planned. `hint` is where
    /// the last search ended; start with 0.
    [[nodiscard]] const std::byte* find(std::uint64_t address, std::uint32_t bytes, std::size_t& hint) const;

  private:
    struct Span {
        std::uint64_t start;
        std::uint64_t end;
        std::size_t at;  ///< in buffer_
    };
    [[nodiscard]] const std::byte* within(const Span& span, std::uint64_t address, std::uint32_t bytes) const;

    std::vector<Span> spans_;
    std::vector<std::byte> buffer_;
};

}  // namespace memattach::python
