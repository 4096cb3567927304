#include "memattach/probe/chunk_scan.h"

#include <doctest/doctest.h>

#include <numeric>

#include "process/fake_memory.h"

using namespace memattach;
using trace::LiveBlocks;

namespace {

constexpr base::Address kHeap{0x555500000000};

/// A heap of chunks, in use or free, and the free rest.
class Heap {
  public:
    Heap(test::FakeMemory& memory, base::Address start, std::uint64_t bytes)
        : memory_(memory), at_(start), end_(start + bytes) {
        memory.map_zeros(start, bytes);
    }
    base::Address add(std::uint64_t bytes, bool in_use) {
        head(bytes);
        before_in_use_ = in_use;
        return at_ - bytes + 16;
    }
    void close() { head(end_.value() - at_.value()); }

  private:
    void head(std::uint64_t bytes) {
        memory_.write(at_ + 8, bytes | (before_in_use_ ? 1 : 0));
        at_ = at_ + bytes;
    }
    test::FakeMemory& memory_;
    base::Address at_, end_;
    bool before_in_use_ = true;
};

process::Mapping mapping(base::Address start, std::uint64_t bytes, std::string path) {
    process::Mapping out;
    out.start = start;
    out.end = start + bytes;
    out.readable = out.writable = true;
    out.path = std::move(path);
    return out;
}

std::uint64_t sum(const probe::ChunkCounts& counts) {
    return std::accumulate(counts.blocks.begin(), counts.blocks.end(), std::uint64_t{0});
}

}  // namespace

TEST_CASE("size classes: every size has one, larger ones have later ones") {
    std::size_t last = LiveBlocks::kObjectClasses;
    CHECK(LiveBlocks::chunk_class(32) == last);
    for (std::uint64_t chunk = 32; chunk <= LiveBlocks::kLargestChunk; chunk += 16) {
        const std::size_t here = LiveBlocks::chunk_class(chunk);
        REQUIRE(here >= last);
        REQUIRE(here <= last + 2);  // 16 bytes are two quarters of 32
        REQUIRE(here < LiveBlocks::kClasses);
        last = here;
    }
    CHECK(LiveBlocks::object_class(0) == 0);
    CHECK(LiveBlocks::object_class(16) == 0);
    CHECK(LiveBlocks::object_class(17) == 1);
    CHECK(LiveBlocks::object_class(512) == LiveBlocks::kObjectClasses - 1);
    CHECK(LiveBlocks::chunk_of(0) == 32);
    CHECK(LiveBlocks::chunk_of(24) == 32);
    CHECK(LiveBlocks::chunk_of(25) == 48);
    CHECK(LiveBlocks::chunk_of(10'000) == 10'016);
}

TEST_CASE("chunks in use are counted by size, free ones and large ones aren't") {
    test::FakeMemory memory;
    constexpr std::uint64_t kBytes = 2 << 20;
    Heap heap(memory, kHeap, kBytes);
    heap.add(0x290, true);
    for (int i = 0; i < 30; ++i) heap.add(10'016, i % 3 != 0);
    heap.add(512 << 10, true);
    const base::Address last = heap.add(48, true);
    heap.close();
    memory.write(last, std::uint64_t{77});
    probe::ChunkScan scan(memory);
    const auto counts = scan.count({mapping(kHeap, kBytes, "[heap]")}, 5);
    REQUIRE(counts);
    CHECK(sum(*counts) == 22);
    CHECK(counts->blocks[LiveBlocks::chunk_class(10'016)] == 20);
    CHECK(counts->bytes[LiveBlocks::chunk_class(10'016)] == 20 * 10'016);
    CHECK(scan.picked(LiveBlocks::chunk_class(10'016)).size() == 5);
    REQUIRE(scan.picked(LiveBlocks::chunk_class(48)).size() == 1);
    const probe::Chunk& picked = scan.picked(LiveBlocks::chunk_class(48)).front();
    CHECK(picked.address == last.value());
    CHECK(picked.bytes == 48);
    CHECK(picked.words[1] == 77);
}

TEST_CASE("an arena's first heap and its further ones") {
    test::FakeMemory memory;
    constexpr std::uint64_t kBytes = 1 << 20, kHead = 48, kArenaBytes = 2200;
    const base::Address first{0x7f0040000000}, second{0x7f0044000000};
    constexpr std::uint64_t kFrom = (kHead + kArenaBytes + 15) / 16 * 16;
    memory.map_zeros(first, kFrom);
    Heap chunks(memory, first + kFrom, kBytes - kFrom);
    chunks.add(1040, true);
    chunks.close();
    memory.map_zeros(second, kHead);
    Heap more(memory, second + kHead, kBytes - kHead);
    more.add(2048, true);
    more.close();
    for (const base::Address heap : {first, second}) {
        memory.write(heap, first.value() + kHead);
        memory.write(heap + 16, kBytes);
    }
    probe::ChunkScan scan(memory);
    const auto counts = scan.count({mapping(first, kBytes, ""), mapping(second, kBytes, "")});
    REQUIRE(counts);
    CHECK(sum(*counts) == 2);
    CHECK(counts->blocks[LiveBlocks::chunk_class(2048)] == 1);
}

TEST_CASE("a heap that can't be followed isn't counted") {
    constexpr std::uint64_t kBytes = 1 << 20;
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{8}, 2 * kBytes, ~std::uint64_t{0}}) {
        test::FakeMemory memory;
        Heap heap(memory, kHeap, kBytes);
        const base::Address broken = heap.add(1040, true);
        heap.close();
        memory.write(broken - 8, size);
        CHECK_FALSE(probe::ChunkScan(memory).count({mapping(kHeap, kBytes, "[heap]")}));
    }
    test::FakeMemory memory;
    CHECK_FALSE(probe::ChunkScan(memory).count({}));
    CHECK_FALSE(probe::ChunkScan(memory).count({mapping(kHeap, kBytes, "[heap]")}));  // nothing there
    CHECK_FALSE(
        probe::ChunkScan(memory).count({mapping(kHeap, probe::ChunkScan::kMostBytes + 4096, "[heap]")}));
}
