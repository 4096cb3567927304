#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace memattach::probe {

/// The first words of a block and the one in front of it, at one moment: enough to tell later whether it is
/// still the same block.
struct BlockContent {
    static constexpr std::size_t kWords = 8;

    std::array<std::uint64_t, kWords> words{};
    std::uint64_t before = 0;   ///< the word in front: with glibc the chunk's size and three flags
    std::uint32_t count = 0;    ///< how many words were read; 0: nothing is known
    std::uint32_t settled = 0;  ///< 0: it had only just been allocated, and may not have been filled yet

    [[nodiscard]] static constexpr std::uint32_t words_of(std::uint64_t size_bytes) {
        if (size_bytes == 0) return 1;  // a block of no bytes has room for some
        return size_bytes > 8 * kWords ? kWords : static_cast<std::uint32_t>((size_bytes + 7) / 8);
    }
};

}  // namespace memattach::probe
