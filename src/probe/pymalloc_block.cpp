#include "memattach/probe/pymalloc_block.h"

#include <array>
#include <cstdint>

namespace memattach::probe {
namespace {

struct PoolHeader {
    std::uint64_t count, freeblock, next_pool, previous_pool;
    std::uint32_t arena_index, size_class, next_offset, max_next_offset;
};
static_assert(sizeof(PoolHeader) == 48);

constexpr std::array<std::uint64_t, 2> kPoolBytes = {16 << 10, 4 << 10};
constexpr std::uint32_t kAlignment = 16;
constexpr std::uint32_t kSizeClasses = 512 / kAlignment;

}  // namespace

std::optional<std::uint64_t> pymalloc_pool_bytes(const process::Memory& memory, base::Address block) {
    for (const std::uint64_t pool_bytes : kPoolBytes) {
        const std::uint64_t offset = block.value() % pool_bytes;
        if (offset < sizeof(PoolHeader)) continue;
        const auto pool = memory.read<PoolHeader>(block - offset);
        if (!pool || pool->size_class >= kSizeClasses) continue;
        const std::uint32_t size = (pool->size_class + 1) * kAlignment;
        if (pool->max_next_offset == pool_bytes - size && (offset - sizeof(PoolHeader)) % size == 0 &&
            pool->next_offset > offset) {
            return pool_bytes;
        }
    }
    return std::nullopt;
}

}  // namespace memattach::probe
