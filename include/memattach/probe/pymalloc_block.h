#pragma once

#include <cstdint>
#include <optional>

#include "memattach/base/address.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

/// The size of the pool of CPython's small-object allocator that `block` lies in; nothing where it doesn't
/// lie in one, but was got from malloc: the allocator's realloc hands such blocks on to malloc's, whatever
/// their new size.
///
/// Looks at the pool that the block would lie in (struct pool_header, Objects/obmalloc.c, the same from 3.3
/// to 3.14; 4 KB each, 16 KB since 3.10). A pool's size class, the last offset that such a pool uses and the
/// block's place must agree, which other memory has no reason to do.
[[nodiscard]] std::optional<std::uint64_t> pymalloc_pool_bytes(const process::Memory& memory,
                                                               base::Address block);

[[nodiscard]] inline bool is_pymalloc_block(const process::Memory& memory, base::Address block) {
    return pymalloc_pool_bytes(memory, block).has_value();
}

}  // namespace memattach::probe
