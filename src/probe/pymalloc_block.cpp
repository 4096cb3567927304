#include "memattach/probe/pymalloc_block.h"

#include <cstdint>

#include "pymalloc_pool.h"

namespace memattach::probe {

std::optional<std::uint64_t> pymalloc_pool_bytes(const process::Memory& memory, base::Address block) {
    for (const std::uint64_t pool_bytes : kPoolBytes) {
        const std::uint64_t offset = block.value() % pool_bytes;
        if (offset < sizeof(PoolHeader)) continue;
        const auto pool = memory.read<PoolHeader>(block - offset);
        if (pool && pool->is_of_pool(pool_bytes) &&
            (offset - sizeof(PoolHeader)) % pool->block_bytes() == 0 && pool->next_offset > offset) {
            return pool_bytes;
        }
    }
    return std::nullopt;
}

}  // namespace memattach::probe
