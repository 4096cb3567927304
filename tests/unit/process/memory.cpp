#include "memattach/process/memory.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>

#include "process/fake_memory.h"

using memattach::base::Address;
using memattach::process::LiveMemory;
using memattach::process::Memory;

namespace {

Address address_of(const void* p) {
    return Address(reinterpret_cast<std::uint64_t>(p));
}

/// One readable page with an unreadable one behind it.
struct GuardedPage {
    char* page =
        static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    GuardedPage() { ::mprotect(page + 4096, 4096, PROT_NONE); }
    GuardedPage(const GuardedPage&) = delete;
    GuardedPage& operator=(const GuardedPage&) = delete;
    ~GuardedPage() { ::munmap(page, 8192); }
};

}  // namespace

TEST_CASE("a read that meets an unmapped page ends there") {
    const GuardedPage guarded;
    const LiveMemory memory(::getpid());
    std::array<std::byte, 64> out{};
    CHECK(memory.read_up_to(address_of(guarded.page + 4096 - 16), out) <= 16);
    CHECK_FALSE(memory.read_exactly(address_of(guarded.page + 4096 - 16), out));
    CHECK(memory.read_up_to(Address(0), out) == 0);
    CHECK(memory.read_up_to(Address(~0ULL - 8), out) == 0);
}

TEST_CASE("pieces: the leading whole ones count, past the kernel's limit too") {
    std::array<int, 3000> source{};
    for (int i = 0; i < 3000; ++i) source[static_cast<std::size_t>(i)] = i * 7;
    std::array<int, 3000> copy{};
    std::vector<Memory::Piece> pieces;
    for (std::size_t i = 0; i < source.size(); ++i) {
        pieces.push_back({address_of(&source[i]), std::as_writable_bytes(std::span(&copy[i], 1))});
    }
    const LiveMemory memory(::getpid());
    CHECK(memory.read_pieces(pieces) == 3000);
    CHECK(copy == source);
    pieces[1500].from = Address(16);
    CHECK(memory.read_pieces(pieces) == 1500);
}

TEST_CASE("a C string may end on the last mapped byte, and must end within the limit") {
    const GuardedPage guarded;
    std::memcpy(guarded.page + 4096 - 6, "hello", 6);
    const LiveMemory memory(::getpid());
    CHECK(memory.read_c_string(address_of(guarded.page + 4096 - 6), 100) == "hello");
    CHECK_FALSE(memory.read_c_string(address_of(guarded.page + 4096 - 6), 5).has_value());
    guarded.page[4095] = 'x';
    CHECK_FALSE(memory.read_c_string(address_of(guarded.page + 4096 - 6), 100).has_value());
}
