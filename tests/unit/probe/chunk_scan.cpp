#include "memattach/probe/chunk_scan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

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
    for (std::uint64_t chunk = 32; chunk <= LiveBlocks::kLargestChunk;
         chunk += std::max<std::uint64_t>(16, chunk / 4096 * 16)) {
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
    CHECK(LiveBlocks::chunk_class(LiveBlocks::kLargestChunk) == LiveBlocks::kClasses - 1);
}

TEST_CASE("chunks in use are counted by size, free ones aren't") {
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
    CHECK(sum(*counts) == 23);
    CHECK(counts->blocks[LiveBlocks::chunk_class(512 << 10)] == 1);
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

TEST_CASE("chunks that are mapped one by one lie among other pages") {
    test::FakeMemory memory;
    Heap heap(memory, kHeap, 1 << 20);
    heap.add(1040, true);
    heap.close();
    constexpr std::uint64_t kPage = 4096, kPages = 700;
    const base::Address start{0x7f0000001000};
    memory.map_zeros(start, kPages * kPage);
    const auto head = [&](std::uint64_t page, std::uint64_t before, std::uint64_t size) {
        memory.write(start + page * kPage, before);
        memory.write(start + page * kPage + 8, size);
    };
    head(3, 0, 100 * kPage | 2);
    head(50, 0, 40 * kPage | 2);           // what the block before holds
    head(103, 0, (300 * kPage - 16) | 2);  // as 2.43 has it
    head(403, 0, 40 * kPage | 3);          // not such a chunk's flags
    head(404, 16, 40 * kPage | 2);         // aligned by memalign
    head(405, 0, (40 * kPage + 16) | 2);
    head(406, 0, 4 * kPage | 2);     // smaller than any that is mapped
    head(407, 0, 4000 * kPage | 2);  // longer than the mapping
    head(600, 0, 100 * kPage | 2);   // up to its end
    memory.write(start + 3 * kPage + 16, std::uint64_t{77});
    probe::ChunkScan scan(memory);
    const auto counts =
        scan.count({mapping(kHeap, 1 << 20, "[heap]"), mapping(start, kPages * kPage, "")}, 5);
    REQUIRE(counts);
    CHECK(counts->large);
    CHECK(sum(*counts) == 4);
    CHECK(counts->blocks[LiveBlocks::chunk_class(100 * kPage)] == 2);
    CHECK(counts->bytes[LiveBlocks::chunk_class(300 * kPage)] == 300 * kPage - 16);
    REQUIRE(scan.picked(LiveBlocks::chunk_class(100 * kPage)).size() == 2);
    CHECK(scan.picked(LiveBlocks::chunk_class(100 * kPage)).front().address ==
          (start + 3 * kPage + 16).value());
    CHECK(scan.picked(LiveBlocks::chunk_class(100 * kPage)).front().words[1] == 77);
}

TEST_CASE("where mappings are too many to look through the heap's chunks are counted all the same") {
    test::FakeMemory memory;
    Heap heap(memory, kHeap, 1 << 20);
    heap.add(1040, true);
    heap.add(400'000, true);
    heap.close();
    probe::ChunkScan scan(memory);
    const auto counts = scan.count({mapping(kHeap, 1 << 20, "[heap]"),
                                    mapping(base::Address{0x100000000000}, std::uint64_t{1} << 44, "")},
                                   5);
    REQUIRE(counts);
    CHECK_FALSE(counts->large);
    CHECK(sum(*counts) == 1);
    CHECK(scan.picked(LiveBlocks::chunk_class(400'000)).empty());
}

/// The memory of a program that goes on: something happens in front of the n-th read.
class BusyMemory final : public process::Memory {
  public:
    BusyMemory(test::FakeMemory& memory, std::size_t when, std::function<void()> what)
        : memory_(memory), when_(when), what_(std::move(what)) {}
    [[nodiscard]] std::size_t read_up_to(base::Address from, std::span<std::byte> out) const override {
        if (++reads_ == when_) what_();
        return memory_.read_up_to(from, out);
    }

    [[nodiscard]] bool has_happened() const { return reads_ >= when_; }

  private:
    test::FakeMemory& memory_;
    std::size_t when_;
    std::function<void()> what_;
    mutable std::size_t reads_ = 0;
};

TEST_CASE("chunks that are merged and split while the heap is read") {
    // Read by 256 KB: what changes is in front of a chunk's head that has been read already.
    constexpr std::uint64_t kBytes = 2 << 20, kBlock = 100'000;
    for (std::size_t when = 1; when < 8; ++when) {
        CAPTURE(when);
        test::FakeMemory memory;
        Heap heap(memory, kHeap, kBytes);
        std::vector<base::Address> blocks;
        for (int i = 0; i < 20; ++i) blocks.push_back(heap.add(kBlock, true));
        heap.close();
        const BusyMemory busy(memory, when, [&] {
            // The 8th to 12th become one, and that three others, with data where heads were.
            for (int i = 8; i < 12; ++i) memory.write(blocks[i] - 8, std::uint64_t{0x3fe5555555555555});
            memory.write(blocks[7] - 8, std::uint64_t{200'000 | 1});
            memory.write(blocks[7] - 8 + 200'000, std::uint64_t{200'000 | 1});
            memory.write(blocks[7] - 8 + 400'000, std::uint64_t{100'000 | 1});
        });
        probe::ChunkScan scan(busy);
        const auto counts = scan.count({mapping(kHeap, kBytes, "[heap]")});
        REQUIRE(counts);
        // As it was before, or as it is, or both in part: no chunk twice, none left out of those that stay.
        const std::uint64_t large = counts->blocks[LiveBlocks::chunk_class(200'000)];
        const std::uint64_t small = counts->blocks[LiveBlocks::chunk_class(kBlock)];
        CHECK(busy.has_happened());
        CHECK(large * 200'000 + small * kBlock <= 20 * kBlock);
        CHECK(small >= 15);
    }
}

TEST_CASE("an arena's heap that grows and shrinks while it is read") {
    constexpr std::uint64_t kHead = 48, kArenaBytes = 2200, kBytes = 1 << 20;
    constexpr std::uint64_t kFrom = (kHead + kArenaBytes + 15) / 16 * 16;
    const base::Address start{0x7f0040000000};
    for (const std::uint64_t later : {kBytes / 2, kBytes + 400'000}) {
        CAPTURE(later);
        test::FakeMemory memory;
        memory.map_zeros(start, kFrom);
        memory.write(start, start.value() + kHead);
        memory.write(start + 16, kBytes);
        Heap chunks(memory, start + kFrom, 2 * kBytes - kFrom);
        chunks.add(10'000, true);
        const base::Address last = chunks.add(10'000, true);
        const base::Address top = last - 16 + 10'000;
        memory.write(top + 8, (later - (top.value() - start.value())) | 1);
        const BusyMemory busy(memory, 3, [&] { memory.write(start + 16, later); });
        const auto counts = probe::ChunkScan(busy).count({mapping(start, kBytes, "")});
        REQUIRE(counts);
        CHECK(sum(*counts) == 2);
    }
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
