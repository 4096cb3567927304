#include "memattach/probe/pymalloc_block.h"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "process/fake_memory.h"

using namespace memattach;

namespace {

constexpr base::Address kPool{0x7f0000008000};

/// A pool of blocks of 64 bytes of which the first ten were handed out.
void write_pool(test::FakeMemory& memory, std::uint32_t pool_bytes) {
    memory.map_zeros(kPool, pool_bytes);
    memory.write(kPool, std::uint64_t{10});
    memory.write(kPool + 36, std::uint32_t{3});
    memory.write(kPool + 40, std::uint32_t{48 + 10 * 64});
    memory.write(kPool + 44, pool_bytes - 64);
}

}  // namespace

TEST_CASE("a block of a pool of either size is pymalloc's own") {
    for (const std::uint32_t bytes : {4096U, 16384U}) {
        test::FakeMemory memory;
        write_pool(memory, bytes);
        CHECK(probe::is_pymalloc_block(memory, kPool + 48));
        CHECK(probe::is_pymalloc_block(memory, kPool + 48 + 9 * 64));
        CHECK_FALSE(probe::is_pymalloc_block(memory, kPool + 48 + 10 * 64));  // never handed out
        CHECK_FALSE(probe::is_pymalloc_block(memory, kPool + 48 + 16));       // not a block's start
        CHECK_FALSE(probe::is_pymalloc_block(memory, kPool + 16));            // in the header
    }
}

TEST_CASE("other memory is not a pool") {
    test::FakeMemory memory;
    CHECK_FALSE(probe::is_pymalloc_block(memory, kPool + 48));  // nothing there
    memory.map_zeros(kPool, 16384);
    CHECK_FALSE(probe::is_pymalloc_block(memory, kPool + 48));
    memory.map(kPool, std::vector<std::byte>(16384, std::byte{0x61}));
    CHECK_FALSE(probe::is_pymalloc_block(memory, kPool + 48));
}
