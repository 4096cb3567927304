#pragma once

#include "memattach/base/address.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

/// Whether CPython's small-object allocator serves `block` itself, as opposed to having got it from malloc:
/// its realloc hands blocks of malloc on to malloc's realloc, whatever their new size.
///
/// Looks at the pool that the block would lie in (struct pool_header, Objects/obmalloc.c, the same from 3.3
/// to 3.14; 4 KB each, 16 KB since 3.10). A pool's size class, the last offset that such a pool uses and the
/// block's place must agree, which other memory has no reason to do.
[[nodiscard]] bool is_pymalloc_block(const process::Memory& memory, base::Address block);

}  // namespace memattach::probe
