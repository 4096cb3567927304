#include "memattach/probe/trace_ring.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/patches.h"

using namespace memattach;

namespace {

std::vector<python::RawFrame> frames_of(std::uint64_t number) {
    std::vector<python::RawFrame> frames(number % 50);
    for (std::size_t i = 0; i < frames.size(); ++i) {
        frames[i].code = base::Address(number * 1000 + i);
        frames[i].instr_offset = static_cast<std::int32_t>(i);
        frames[i].entry = i % 2 == 0;
    }
    return frames;
}

}  // namespace

TEST_CASE("what is written is read, in order and whole, around the end of the buffer") {
    const auto ring = std::make_unique<probe::TraceRing>();
    constexpr std::uint64_t kCount = 200'000;
    std::uint64_t wrong = 0;
    std::thread reader([&] {
        probe::TraceEvent event;
        std::vector<python::RawFrame> frames;
        for (std::uint64_t next = 0; next < kCount;) {
            if (!ring->read(event, frames)) {
                std::this_thread::yield();
                continue;
            }
            if (event.address != next || frames != frames_of(next)) ++wrong;
            ++next;
        }
    });
    for (std::uint64_t number = 0; number < kCount;) {
        probe::TraceEvent event;
        event.address = number;
        if (ring->write(event, frames_of(number))) {
            ++number;
        } else {
            std::this_thread::yield();
        }
    }
    reader.join();
    CHECK(wrong == 0);
    CHECK(ring->waiting_bytes() == 0);
}

TEST_CASE("a full ring counts what it loses and goes on afterwards") {
    const auto ring = std::make_unique<probe::TraceRing>();
    probe::TraceEvent event;
    std::uint64_t written = 0;
    while (ring->write(event, frames_of(49))) ++written;
    CHECK(written > 1000);
    CHECK(ring->lost() == 1);
    std::vector<python::RawFrame> frames;
    CHECK(ring->read(event, frames));
    CHECK(ring->write(event, frames_of(49)));
    std::uint64_t read = 1;
    while (ring->read(event, frames)) ++read;
    CHECK(read == written + 1);
}

TEST_CASE("patches are noted before they are made and undone from the note alone") {
    const auto table = std::make_unique<probe::PatchTable>();
    const base::UniqueFd memory(::open("/proc/self/mem", O_RDWR | O_CLOEXEC));
    REQUIRE(memory.is_open());
    // Code is read-only: the write must reach it all the same.
    auto* page = static_cast<unsigned char*>(
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(page, 0x90, 4096);
    ::mprotect(page, 4096, PROT_READ | PROT_EXEC);
    const auto at = [&](int offset) { return reinterpret_cast<std::uint64_t>(page + offset); };

    SUBCASE("one by one") {
        const auto entry = probe::apply_patch(*table, memory.get(), at(5), 0x90, 0xCC, 1);
        REQUIRE(entry);
        CHECK(page[5] == 0xCC);
        CHECK(table->page_count.load() == 1);
        probe::undo_patch(*table, memory.get(), *entry);
        CHECK(page[5] == 0x90);
        CHECK(probe::undo_all_patches(*table, memory.get(), true) == 0);
    }
    SUBCASE("all at once, as after the tracing half's death") {
        for (int i = 0; i < 100; ++i)
            REQUIRE(probe::apply_patch(*table, memory.get(), at(i * 8), 0x90, 0xCC, 1));
        CHECK(probe::undo_all_patches(*table, memory.get(), false) == 100);
        for (int i = 0; i < 4096; ++i) REQUIRE(page[i] == 0x90);
        CHECK(table->page_count.load() == 1);
    }
    SUBCASE("not where the target holds something else than was expected") {
        CHECK_FALSE(probe::apply_patch(*table, memory.get(), at(5), 0x55, 0xCC, 1));
        CHECK(page[5] == 0x90);
        CHECK(table->entries[0].address.load() == 0);
    }
    SUBCASE("not undone where the program has written something of its own since") {
        const auto entry = probe::apply_patch(*table, memory.get(), at(5), 0x90, 0xCC, 1);
        REQUIRE(entry);
        REQUIRE(probe::write_word(memory.get(), at(5), 0x55, 1));
        probe::undo_patch(*table, memory.get(), *entry);
        CHECK(page[5] == 0x55);
    }
    SUBCASE("pointers") {
        std::uint64_t slot = 17;
        const auto entry =
            probe::apply_patch(*table, memory.get(), reinterpret_cast<std::uint64_t>(&slot), 17, 42, 8);
        REQUIRE(entry);
        CHECK(probe::read_word(memory.get(), reinterpret_cast<std::uint64_t>(&slot), 8) == 42);
        probe::undo_patch(*table, memory.get(), *entry);
        CHECK(probe::read_word(memory.get(), reinterpret_cast<std::uint64_t>(&slot), 8) == 17);
    }
    SUBCASE("a full table refuses") {
        std::size_t made = 0;
        for (int i = 0; i < 4096; ++i)
            made += probe::apply_patch(*table, memory.get(), at(i), 0x90, 0xCC, 1) ? 1 : 0;
        CHECK(made == 4096);
        std::uint64_t slot = 1;
        CHECK_FALSE(
            probe::apply_patch(*table, memory.get(), reinterpret_cast<std::uint64_t>(&slot), 1, 2, 8));
        CHECK(probe::undo_all_patches(*table, memory.get(), true) == 4096);
    }
    ::munmap(page, 4096);
}
