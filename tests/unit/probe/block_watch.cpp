#include "memattach/probe/block_watch.h"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../../src/probe/block_judge.h"
#include "process/fake_memory.h"

using namespace memattach;
using probe::BlockContent;
using probe::BlockType;
using probe::Sight;

namespace {

constexpr std::uint64_t kMs = 1'000'000;
constexpr base::Address kPool{0x7f0000008000};
constexpr std::uint64_t kPoolBytes = 16384, kBlockBytes = 64;
constexpr base::Address kRuntime{0x600000}, kType{0x700000}, kTypes{0x701000};
constexpr std::uint64_t kReady = 1 << 12, kHasGc = 1 << 14;
constexpr std::uint64_t kLong = 1 << 24, kUnicode = 1 << 28, kIsType = 1UL << 31;

/// A pool of blocks of 64 bytes.
struct Pool {
    std::vector<std::byte> bytes = std::vector<std::byte>(kPoolBytes);

    template <typename T>
    void put(std::uint64_t offset, T value) {
        std::memcpy(bytes.data() + offset, &value, sizeof value);
    }
    static std::uint64_t offset_of(std::uint64_t block) { return 48 + block * kBlockBytes; }
    static std::uint64_t address_of(std::uint64_t block) { return kPool.value() + offset_of(block); }

    /// The first `carved` blocks were handed out, of which `free` were given back, the last first in the
    /// list.
    Pool(std::uint32_t carved, const std::vector<std::uint64_t>& free) {
        put<std::uint32_t>(0, carved - static_cast<std::uint32_t>(free.size()));
        put<std::uint64_t>(8, free.empty() ? 0 : address_of(free.back()));
        put<std::uint32_t>(36, 3);
        put<std::uint32_t>(40, static_cast<std::uint32_t>(offset_of(carved)));
        put<std::uint32_t>(44, kPoolBytes - kBlockBytes);
        for (std::size_t i = 0; i < free.size(); ++i)
            put<std::uint64_t>(offset_of(free[i]), i == 0 ? 0 : address_of(free[i - 1]));
    }
    /// Refers to this pool's bytes.
    [[nodiscard]] probe::PoolCopy copy() const {
        probe::PoolCopy copy;
        copy.address = kPool.value();
        std::memcpy(&copy.first, bytes.data(), sizeof copy.first);
        copy.last = copy.first;
        copy.bytes = bytes;
        return copy;
    }
    [[nodiscard]] std::optional<bool> is_free(std::uint64_t block) const {
        return probe::is_free_in_pool(copy(), offset_of(block));
    }
};

BlockContent content(std::initializer_list<std::uint64_t> words, bool settled = true) {
    BlockContent out;
    for (const std::uint64_t word : words) out.words.at(out.count++) = word;
    out.settled = settled ? 1 : 0;
    return out;
}

/// A process with a pool and a type.
struct Target {
    test::FakeMemory memory;
    python::Runtime runtime;
    probe::SiteMap sites;

    explicit Target(std::uint64_t flags = kReady | kLong) {
        runtime.address = kRuntime;
        sites.object_name = "pymalloc";
        sites.malloc_name = "glibc";
        memory.map_zeros(kRuntime, 64);
        add_type(kType, flags);
        add_type(kTypes, kReady | kIsType);
    }
    void add_type(base::Address at, std::uint64_t flags) {
        memory.map_zeros(at, 512);
        memory.write(at + 8, kTypes.value());
        memory.write(at + 32, std::uint64_t{24});
        memory.write(at + 168, flags);
    }
    void write_pool(const Pool& pool) { memory.map(kPool, pool.bytes); }
    [[nodiscard]] std::unique_ptr<probe::BlockWatch> watch() const {
        return std::make_unique<probe::BlockWatch>(memory, runtime, sites);
    }
};

trace::Alloc alloc_at(std::uint64_t address, std::uint64_t time_ns, std::uint64_t window = 1,
                      std::uint64_t size = kBlockBytes) {
    trace::Alloc alloc;
    alloc.address = address;
    alloc.time_ns = time_ns;
    alloc.size_bytes = size;
    alloc.window = window;
    alloc.kind = trace::AllocKind::object;
    return alloc;
}

/// Looks whenever it is due, until `until_ns`.
std::vector<trace::Free> look_until(probe::BlockWatch& watch, std::uint64_t until_ns) {
    std::vector<trace::Free> ended;
    while (watch.due_ns() <= until_ns) watch.look(watch.due_ns(), ended);
    return ended;
}

}  // namespace

TEST_CASE("pools: what is in the free list is free, whatever its place") {
    const Pool pool(10, {3, 7, 0});
    for (std::uint64_t block = 0; block < 10; ++block)
        CHECK(pool.is_free(block) == (block == 3 || block == 7 || block == 0));
    CHECK(pool.is_free(10) == true);  // never handed out
    CHECK(Pool(10, {}).is_free(5) == false);
    CHECK(probe::is_free_in_pool(pool.copy(), Pool::offset_of(4) + 16) == true);  // now of another size
    Pool empty(10, {3});
    empty.put<std::uint32_t>(0, 0);
    CHECK(empty.is_free(5) == true);
}

TEST_CASE("pools: torn, cyclic and forged ones say nothing") {
    const Pool pool(10, {3, 7});
    probe::PoolCopy torn = pool.copy();
    torn.last.freeblock = Pool::address_of(4);
    CHECK_FALSE(probe::is_free_in_pool(torn, Pool::offset_of(3)));
    torn = pool.copy();
    torn.last.next_pool = 0x1234;  // which pools are beside it is another matter
    CHECK(probe::is_free_in_pool(torn, Pool::offset_of(3)) == true);

    Pool short_list(10, {3, 7});
    short_list.put<std::uint64_t>(Pool::offset_of(7), 0);
    CHECK_FALSE(short_list.is_free(3));
    Pool into_use(10, {3, 7});  // block 7 was taken while the pool was read, and holds a link to block 5
    into_use.put<std::uint64_t>(Pool::offset_of(7), Pool::address_of(5));
    into_use.put<std::uint64_t>(Pool::offset_of(5), 1);
    CHECK_FALSE(into_use.is_free(5));
    Pool cyclic(10, {3, 7});
    cyclic.put<std::uint64_t>(Pool::offset_of(3), Pool::address_of(7));
    CHECK_FALSE(cyclic.is_free(7));
    for (const std::uint64_t link : {std::uint64_t{1}, kPool.value(), Pool::address_of(2) + 8,
                                     kPool.value() + kPoolBytes, ~std::uint64_t{0}}) {
        Pool forged(10, {3, 7});
        forged.put<std::uint64_t>(8, link);
        CHECK_FALSE(forged.is_free(3));
    }
    std::mt19937_64 random(1);
    for (int i = 0; i < 2000; ++i) {
        Pool noise(10, {3, 7, 2});
        for (int k = 0; k < 3; ++k)
            noise.put<std::uint64_t>(random() % (k == 0 ? 48 : kPoolBytes - 8) & ~std::uint64_t{3}, random());
        static_cast<void>(noise.is_free(random() % 300));
    }
}

TEST_CASE("chunks: another size, a neighbour that says so, or a link and a key in a cache") {
    const auto chunk = [](std::uint64_t size, std::initializer_list<std::uint64_t> words) {
        BlockContent out = content(words);
        out.before = size;
        return out;
    };
    constexpr std::uint64_t kAt = 0x55550000a010;
    const BlockContent before = chunk(0x401, {1, kType.value(), 900, ~std::uint64_t{0}});
    CHECK_FALSE(probe::is_freed_chunk(before, before, kAt, 0x501));
    CHECK_FALSE(
        probe::is_freed_chunk(before, chunk(0x400, {1, kType.value()}), kAt, 0x501));  // its neighbour
    CHECK(probe::is_freed_chunk(before, chunk(0x421, {1, kType.value()}), kAt, 0x501));
    CHECK(probe::is_freed_chunk(before, before, kAt, 0x500));
    constexpr std::uint64_t kKey = 0x9d3c01f7a2b45e61;
    CHECK(probe::is_freed_chunk(before, chunk(0x401, {kAt >> 12, kKey}), kAt, 0x501));
    CHECK(probe::is_freed_chunk(before, chunk(0x401, {(kAt >> 12) ^ (kAt + 0x400), kKey}), kAt, 0x501));
    CHECK_FALSE(probe::is_freed_chunk(before, chunk(0x401, {0x3ff0000000000000, 0x4000000000000000}), kAt,
                                      0x501));  // an array of numbers
    CHECK(probe::to_next_size(0x401) == 0x3f8);
    CHECK_FALSE(probe::to_next_size(0x200002));                // mapped
    CHECK_FALSE(probe::to_next_size(0));                       // nothing known
    CHECK_FALSE(probe::to_next_size(~std::uint64_t{0} & ~7));  // absurd
}

TEST_CASE("types: objects are recognised behind whatever lies in front of them") {
    const Target target(kReady | kLong);
    probe::BlockTypes types(target.memory, target.runtime.layout, false);
    CHECK(types.recognise(content({1, kType.value(), 1, 5}), 32).index == 1);
    CHECK(types.recognise(content({1, kType.value(), 1, 5}), 32).changes == BlockType::Changes::never);
    CHECK(types.recognise(content({0x7f0000001000, 0x7f0000002000, 3, kType.value(), 1}), 48).index == 3);
    CHECK(types.recognise(content({0, 0, 0, 0, 0xFFFFFFFF, kType.value(), 1}), 64).index == 5);
    CHECK(types.recognise(content({0, kType.value(), 1}), 32).index == 0);               // not in use
    CHECK(types.recognise(content({0x7f0000001000, kType.value(), 1}), 32).index == 0);  // two pointers
    CHECK(types.recognise(content({1, kRuntime.value(), 1}), 32).index == 0);            // no type
    CHECK(types.recognise(content({1, kType.value() + 8, 1}), 32).index == 0);           // in its middle
    CHECK(types.recognise(content({1, 0x12345678, 1}), 32).index == 0);                  // nothing there
    CHECK(types.recognise(content({1}), 16).index == 0);
}

TEST_CASE("content: what each type allows itself") {
    const auto see = [](const BlockContent& before, const BlockContent& now, std::uint8_t index,
                        BlockType::Changes changes, std::uint64_t size = kBlockBytes) {
        return probe::compare(before, now, {index, changes}, Pool::address_of(5), size,
                              {.pool_bytes = kPoolBytes});
    };
    using enum BlockType::Changes;
    const std::uint64_t t = kType.value();
    constexpr std::uint64_t kNone = ~std::uint64_t{0};
    // int, float, tuple
    CHECK(see(content({1, t, 7, 8}), content({2, t, 7, 8}), 1, never) == Sight::same);
    CHECK(see(content({1, t, 7, 8}), content({1, t, 7, 9}), 1, never) == Sight::changed);
    CHECK(see(content({1, t, 7, 8}), content({1, t + 512, 7, 8}), 1, never) == Sight::changed);
    CHECK(see(content({1, t, 7, 8}), content({0, t, 7, 8}), 1, never) == Sight::changed);
    CHECK(see(content({1, t, 7, 8}), content({Pool::address_of(9), t, 7, 8}), 1, never) == Sight::changed);
    CHECK(see(content({1, t, 2, 0, 0}), content({1, t, 2, 0x7f1000, 0}), 1, never) ==
          Sight::same);  // being filled
    CHECK(see(content({1, t, 7, 8}, false), content({1, t, 7, 9}), 1, never) ==
          Sight::same);  // read too early
    CHECK(see(content({1, t, 7, 8}, false), content({1, t, 6, 8}), 1, never) == Sight::changed);
    // str: length, hash, state, text
    CHECK(see(content({1, t, 5, kNone, 0x64, 0x6c6c6568}), content({1, t, 5, 12345, 0xe4, 0x6c6c6568}), 1,
              text) == Sight::same);
    CHECK(see(content({1, t, 5, 12345, 0x64, 0x6c6c6568}), content({1, t, 5, kNone, 0x64, 0x6c6c6568}), 1,
              text) == Sight::changed);
    CHECK(see(content({1, t, 5, kNone, 0x64, 0x6c6c6568}), content({1, t, 5, kNone, 0x64, 0x6f6c6568}), 1,
              text) == Sight::changed);
    // a dictionary that is written to, and one that is gone
    const BlockContent dict = content({0x7f0000001000, 0x7f0000002000, 1, t, 3, 9001, 0x7f0000003000, 0});
    BlockContent written = content({0x7f0000001200, 0x7f0000002300, 2, t, 4, 9002, 0x7f0000003000, 0});
    CHECK(see(dict, written, 3, freely) == Sight::same);
    written.words[6] = 0x7f0000005000;  // another table: another dictionary, most likely
    CHECK(see(dict, written, 3, freely) == Sight::changed);
    written.words[6] = dict.words[6];
    written.words[2] = 0;
    CHECK(see(dict, written, 3, freely) == Sight::changed);
    // an instance of which one attribute has changed, and all
    const BlockContent instance = content({1, t, 0x7f0000001000, 0x7f0000002000, 0});
    CHECK(see(instance, content({1, t, 0x7f0000001000, 0x7f0000009000, 0}), 1, freely) == Sight::same);
    CHECK(see(instance, content({1, t, 0x7f0000008000, 0x7f0000009000, 0}), 1, freely) == Sight::changed);
    // no object: a table of pointers
    const BlockContent table = content({0x7f0000001000, 0x7f0000001100, 0x7f0000001200, 0});
    CHECK(see(table, content({0x7f0000001000, 0x7f0000009100, 0x7f0000001200, 0x7f0000001300}), 0, freely) ==
          Sight::same);
    CHECK(see(table, content({0x7f0000001008, 0x7f0000009100, 0x7f0000001200, 0}), 0, freely) ==
          Sight::changed);
    CHECK(see(table, content({Pool::address_of(9), 0x7f0000001100, 0x7f0000001200, 0}), 0, freely) ==
          Sight::maybe_free);
    CHECK(see(table, content({0, 0x7f0000001100, 0x7f0000001200, 0}), 0, freely) == Sight::maybe_free);
    // numbers: of large blocks they say nothing
    CHECK(see(content({11, 12, 13, 14}), content({21, 22, 23, 14}), 0, freely) == Sight::changed);
    CHECK(see(content({11, 12, 13, 14}), content({21, 22, 23, 24}), 0, freely, 50'000) == Sight::same);
    CHECK(see(content({11, 12, 13, 14}), content({21, 22, 23, 24}), 0, freely, 100'000) == Sight::changed);
    CHECK(see(content({11, 12, 13, 14}), content({21, 22, 13, 14}), 0, freely, 100'000) == Sight::same);
    CHECK(see({}, content({1, t, 7, 8}), 0, freely) == Sight::same);  // the first look
}

TEST_CASE("content: free-threaded objects count in two words, and mimalloc links what is free") {
    constexpr std::uint64_t kThread = 0x7f00aa00b740, kBlock = 0x200000a1240, kLocal = std::uint64_t{1} << 32;
    const std::uint64_t t = kType.value();
    const auto see = [&](const BlockContent& before, const BlockContent& now, std::uint8_t index,
                         std::uint64_t size = 64) {
        return probe::compare(before, now, {index, BlockType::Changes::freely}, kBlock, size,
                              {.mimalloc = true, .split_references = true});
    };
    const BlockContent object = content({kThread, 2 * kLocal, 0, t, 7});
    CHECK(see(object, content({kThread, kLocal, 0, t, 8}), 3) == Sight::same);
    CHECK(see(object, content({0, 0, 2 << 2 | 3, t, 7}), 3) == Sight::same);  // other threads refer to it
    CHECK(see(object, content({kThread, kLocal, ~std::uint64_t{7}, t, 7}), 3) == Sight::same);
    CHECK(see(object, content({kBlock + 0x80, 0, 0, t, 7}), 3) == Sight::changed);
    CHECK(see(object, content({0, 0, 3, t, 7}), 3) == Sight::changed);
    CHECK(see(object, content({0x200000a0000, kLocal, 0, t, 7}), 3) ==
          Sight::same);  // a list of the collector's
    // no object: lists' items, dictionaries' keys
    const BlockContent table = content({16, 0x20000111000, 0x20000111040});
    CHECK(see(table, content({16, 0x20000111000, 0x20000111080}), 0) == Sight::same);
    CHECK(see(table, content({32, 0x20000111000, 0x20000111040}), 0) == Sight::same);
    CHECK(see(table, content({0x200000a0000, 0x20000111000, 0x20000111040}), 0) == Sight::changed);
    CHECK(see(table, content({0x200000b0000, 0x20000111000, 0x20000111040}), 0) == Sight::same);
    CHECK(see(table, content({0x20000111000, 0x20000111000, 0x20000111040}), 0, 20'000) == Sight::changed);
    CHECK(see(table, content({kBlock, 0x20000111000, 0x20000111040}), 0) == Sight::same);

    Target target(kReady | kLong);
    target.memory.write(kType + 24, kTypes.value());
    auto layout = target.runtime.layout;
    layout.object.type = 24;
    probe::BlockTypes types(target.memory, layout, true);
    CHECK(types.recognise(content({kThread, kLocal, 0, t, 5}), 48).index == 3);
    CHECK(types.recognise(content({0, 0, 1 << 2 | 3, t, 5}), 48).index == 3);
    CHECK(types.recognise(content({kThread, 0, 0, t, 5}), 48).index == 0);  // not in use
}

TEST_CASE("a block is live until a look finds it in the pool's list of free ones") {
    Target target;
    target.write_pool(Pool(10, {3, 7}));
    const auto watch = target.watch();
    watch->add(alloc_at(Pool::address_of(5), 100 * kMs));
    watch->add(alloc_at(Pool::address_of(6), 100 * kMs));
    CHECK(watch->due_ns() == ~std::uint64_t{0});  // its window is open
    watch->window_over(trace::AllocKind::object, 1, 101 * kMs, 110 * kMs);
    CHECK(watch->due_ns() <= 110 * kMs);
    CHECK(look_until(*watch, 500 * kMs).empty());
    CHECK(watch->figures().looks > 30);
    CHECK(watch->figures().looks < 80);

    target.write_pool(Pool(10, {3, 7, 5}));
    const std::vector<trace::Free> ended = look_until(*watch, 700 * kMs);
    REQUIRE(ended.size() == 1);
    CHECK(ended[0].address == Pool::address_of(5));
    CHECK(ended[0].time_ns > 400 * kMs);
    CHECK(ended[0].time_ns < 600 * kMs);
    CHECK(ended[0].size_bytes == 0);
    CHECK(watch->size() == 1);
    watch->forget(Pool::address_of(6));
    CHECK(look_until(*watch, 900 * kMs).empty());
}

TEST_CASE("what the window's end held tells the block from the one that took its place") {
    for (const bool told : {false, true}) {
        Target target;
        Pool pool(10, {3});
        pool.put(Pool::offset_of(5), std::uint64_t{1});
        pool.put(Pool::offset_of(5) + 8, kType.value());
        pool.put(Pool::offset_of(5) + 16, std::uint64_t{1});
        pool.put(Pool::offset_of(5) + 24, std::uint64_t{42});
        target.write_pool(pool);
        const auto watch = target.watch();
        watch->add(alloc_at(Pool::address_of(5), 100 * kMs));
        BlockContent was = content({1, kType.value(), 1, 41, 0, 0, 0, 0});
        if (told) watch->set_content(Pool::address_of(5), 1, was);
        watch->set_content(Pool::address_of(5), 2, content({}));  // of another window: not its own
        watch->window_over(trace::AllocKind::object, 1, 101 * kMs, 110 * kMs);
        const auto ended = look_until(*watch, 200 * kMs);
        CHECK(ended.size() == (told ? 1 : 0));
        if (told) CHECK(ended[0].time_ns == (101 + 110) * kMs / 2);
    }
}

TEST_CASE("memory that is gone ends a block; a target that is gone ends nothing") {
    Target target;
    target.write_pool(Pool(10, {}));
    const auto watch = target.watch();
    watch->add(alloc_at(Pool::address_of(5), 100 * kMs));
    watch->add(alloc_at(0x7e0000000000, 100 * kMs));  // not mapped any more
    watch->add(alloc_at(~std::uint64_t{0} - 7, 100 * kMs));
    watch->add(alloc_at(Pool::address_of(6), 100 * kMs, 2));  // its window is still open
    watch->window_over(trace::AllocKind::object, 1, 101 * kMs, 110 * kMs);
    auto ended = look_until(*watch, 200 * kMs);
    REQUIRE(ended.size() == 1);
    CHECK(ended[0].address == 0x7e0000000000);

    target.runtime.address = base::Address(0x10);
    const auto late = target.watch();
    late->add(alloc_at(Pool::address_of(5), 100 * kMs));
    late->window_over(trace::AllocKind::object, 1, 101 * kMs, 110 * kMs);
    CHECK(look_until(*late, 200 * kMs).empty());
    ended.clear();
    std::vector<trace::Unseen> unseen;
    late->look_last(ended, unseen);
    CHECK(ended.size() == 1);  // no look had seen it behind its window

    watch->lose_target();
    ended.clear();
    watch->look_last(ended, unseen);
    CHECK(ended.empty());
    REQUIRE(unseen.size() == 1);
    CHECK(unseen[0].address == Pool::address_of(5));
}

TEST_CASE("blocks of a kind that was armed throughout are looked at once it isn't any more") {
    Target target;
    target.write_pool(Pool(10, {5}));
    const auto watch = target.watch();
    watch->add(alloc_at(Pool::address_of(5), 100 * kMs, 0));
    CHECK(watch->due_ns() == ~std::uint64_t{0});
    watch->window_over(trace::AllocKind::object, 0, 300 * kMs, 310 * kMs);
    const auto ended = look_until(*watch, 400 * kMs);
    REQUIRE(ended.size() == 1);
    CHECK(ended[0].time_ns >= 300 * kMs);
}

TEST_CASE("too many blocks: the same halves are dropped everywhere") {
    Target target;
    target.write_pool(Pool(10, {}));
    const auto watch = target.watch();
    constexpr std::uint64_t kCount = 3 * probe::BlockWatch::kMostBlocks;
    for (std::uint64_t i = 0; i < kCount; ++i) watch->add(alloc_at(0x7d0000000000 + 64 * i, i, 0));
    CHECK(watch->size() <= probe::BlockWatch::kMostBlocks);
    CHECK(watch->size() > probe::BlockWatch::kMostBlocks / 3);
    std::uint64_t kept = 0;
    for (std::uint64_t i = 0; i < kCount; ++i)
        kept += (trace::thinning_bits(0x7d0000000000 + 64 * i, i) & 3) == 0 ? 1 : 0;
    CHECK(watch->size() == kept);
}

TEST_CASE("whatever the target's memory holds, looking at it ends") {
    std::mt19937_64 random(5);
    for (int i = 0; i < 200; ++i) {
        Target target(random());
        Pool pool(10, {3, 7, 2});
        for (int k = 0; k < 60; ++k) {
            const std::uint64_t word = k % 3 == 0   ? random()
                                       : k % 3 == 1 ? Pool::address_of(random() % 12)
                                                    : kType.value() + random() % 3 * 8;
            pool.put<std::uint64_t>(random() % (kPoolBytes / 8 - 1) * (k % 2 == 0 ? 8 : 1) % (kPoolBytes - 8),
                                    word);
        }
        target.write_pool(pool);
        const auto watch = target.watch();
        for (std::uint64_t block = 0; block < 12; ++block) {
            trace::Alloc alloc = alloc_at(Pool::address_of(block), 100 * kMs, 1, random() % 2000);
            alloc.kind = block % 2 == 0 ? trace::AllocKind::object : trace::AllocKind::malloc;
            watch->add(alloc);
            BlockContent forged;
            for (std::uint64_t& word : forged.words) word = random();
            forged.count = static_cast<std::uint32_t>(random() % 12);
            watch->set_content(alloc.address, 1, forged);
        }
        watch->window_over(trace::AllocKind::object, 1, 101 * kMs, 110 * kMs);
        watch->window_over(trace::AllocKind::malloc, 1, 101 * kMs, 110 * kMs);
        static_cast<void>(look_until(*watch, 300 * kMs));
    }
    CHECK(true);
}
