/// struct pool_header of Objects/obmalloc.c, the same in CPython 3.8 to 3.14: a pool is a piece of 4 KB (16
/// KB since 3.10) that begins at a multiple of its size and holds blocks of one size, behind 48 bytes of
/// header.
#pragma once

#include <array>
#include <cstdint>

namespace memattach::probe {

inline constexpr std::array<std::uint64_t, 2> kPoolBytes = {16 << 10, 4 << 10};
inline constexpr std::uint32_t kPoolAlignment = 16;
inline constexpr std::uint32_t kPoolClasses = 512 / kPoolAlignment;

struct PoolHeader {
    std::uint64_t count;  ///< blocks in use
    std::uint64_t freeblock, next_pool, previous_pool;
    std::uint32_t arena_index, size_class, next_offset, max_next_offset;

    [[nodiscard]] std::uint32_t block_bytes() const { return (size_class + 1) * kPoolAlignment; }
    /// Whether this is a pool's, which other memory has no reason to look like: its size class and the last
    /// offset that such a pool uses agree.
    [[nodiscard]] bool is_of_pool(std::uint64_t pool_bytes) const {
        return size_class < kPoolClasses && max_next_offset == pool_bytes - block_bytes();
    }
    /// Blocks that have been handed out at some time; nothing sensible where !is_of_pool().
    [[nodiscard]] std::uint64_t carved() const {
        return next_offset < sizeof(PoolHeader) ? 0 : (next_offset - sizeof(PoolHeader)) / block_bytes();
    }
    [[nodiscard]] std::uint64_t in_use() const { return count & 0xFFFFFFFF; }
};
static_assert(sizeof(PoolHeader) == 48);

}  // namespace memattach::probe
