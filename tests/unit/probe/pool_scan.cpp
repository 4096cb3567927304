#include "memattach/probe/pool_scan.h"

#include <doctest/doctest.h>

#include <numeric>

#include "process/fake_memory.h"

using namespace memattach;

namespace {

constexpr base::Address kArena{0x7f0000100000};
constexpr std::uint64_t kPoolBytes = 16384;

/// A pool of blocks of 16 × (size_class + 1) bytes.
void write_pool(test::FakeMemory& memory, base::Address pool, std::uint32_t size_class, std::uint32_t in_use,
                std::uint32_t carved, std::uint32_t pool_bytes = kPoolBytes) {
    const std::uint32_t size = 16 * (size_class + 1);
    memory.write(pool, std::uint64_t{in_use});
    memory.write(pool + 8, carved > in_use ? pool.value() + 48 : std::uint64_t{0});
    memory.write(pool + 36, size_class);
    memory.write(pool + 40, 48 + carved * size);
    memory.write(pool + 44, pool_bytes - size);
}

process::Mapping mapping(base::Address start, std::uint64_t bytes) {
    process::Mapping out;
    out.start = start;
    out.end = start + bytes;
    out.readable = out.writable = true;
    return out;
}

constexpr int kNobody = 0;  ///< no process: no pagemap

}  // namespace

TEST_CASE("pools are found where they may begin, and what they have in use is counted by size") {
    test::FakeMemory memory;
    memory.map_zeros(kArena, 1 << 20);
    write_pool(memory, kArena, 3, 10, 12);
    write_pool(memory, kArena + 2 * kPoolBytes, 3, 5, 5);
    write_pool(memory, kArena + 3 * kPoolBytes, 31, 7, 31);
    write_pool(memory, kArena + 4 * kPoolBytes, 7, 0, 9);         // empty by now
    write_pool(memory, kArena + 5 * kPoolBytes + 4096, 7, 9, 9);  // not where a pool begins
    probe::PoolScan scan(kNobody, memory);
    const auto counts = scan.count({mapping(kArena, 1 << 20)});
    REQUIRE(counts);
    CHECK(scan.pool_bytes() == kPoolBytes);
    CHECK(counts->blocks[3] == 15);
    CHECK(counts->blocks[31] == 7);
    CHECK(std::accumulate(counts->blocks.begin(), counts->blocks.end(), std::uint64_t{0}) == 22);
    REQUIRE(counts->pools.size() == 3);
    CHECK(counts->pools[0].address == kArena.value());
    CHECK(counts->pools[0].in_use == 10);
}

TEST_CASE("pools of 4 KB, as before 3.10, are told by themselves") {
    test::FakeMemory memory;
    memory.map_zeros(kArena, 256 << 10);
    for (std::uint64_t i = 0; i < 64; ++i) write_pool(memory, kArena + i * 4096, 0, 3, 4, 4096);
    probe::PoolScan scan(kNobody, memory);
    const auto counts = scan.count({mapping(kArena, 256 << 10)});
    REQUIRE(counts);
    CHECK(scan.pool_bytes() == 4096);
    CHECK(counts->blocks[0] == 64 * 3);
}

TEST_CASE("forged headers, files and shared memory aren't counted; gaps are skipped") {
    test::FakeMemory memory;
    memory.map_zeros(kArena, 8 * kPoolBytes);
    write_pool(memory, kArena, 3, 13, 12);                   // more in use than handed out
    write_pool(memory, kArena + kPoolBytes, 32, 1, 1);       // no such size
    write_pool(memory, kArena + 2 * kPoolBytes, 3, 5, 400);  // more than there is room for
    write_pool(memory, kArena + 3 * kPoolBytes, 3, 5, 6);
    memory.write(kArena + 3 * kPoolBytes + 8, std::uint64_t{0x1234});  // a free block elsewhere
    write_pool(memory, kArena + 7 * kPoolBytes, 3, 5, 6);
    probe::PoolScan scan(kNobody, memory);
    // Twice as much is mapped as can be read.
    const auto counts = scan.count({mapping(kArena, 16 * kPoolBytes)});
    REQUIRE(counts);
    CHECK(counts->blocks[3] == 5);
    process::Mapping file = mapping(kArena, 8 * kPoolBytes);
    file.inode = 7;
    process::Mapping shared = mapping(kArena, 8 * kPoolBytes);
    shared.shared = true;
    CHECK(probe::PoolScan(kNobody, memory).count({file, shared})->pools.empty());
}

TEST_CASE("a process with more memory than can be looked at in time isn't counted") {
    test::FakeMemory memory;
    probe::PoolScan scan(kNobody, memory);
    CHECK_FALSE(scan.count({mapping(kArena, (probe::PoolScan::kMostPlaces + 2) * kPoolBytes)}));
}
