#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <vector>

#include "../../../src/probe/shadow_sampler.h"
#include "process/fake_memory.h"

using namespace memattach;

TEST_CASE("what a shadow has is read from it page by page, the rest as it was when the thread was held") {
    constexpr std::size_t kPage = 4096;
    // This process is the shadow: it has the first of two pages.
    void* pages = ::mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(pages != MAP_FAILED);
    std::memset(pages, 2, kPage);
    REQUIRE(::mprotect(static_cast<std::byte*>(pages) + kPage, kPage, PROT_NONE) == 0);
    const base::Address start(reinterpret_cast<std::uint64_t>(pages));

    test::FakeMemory target;
    target.map(start, std::vector<std::byte>(2 * kPage, std::byte{1}));
    probe::ShadowMemory memory(target);
    memory.begin_hold();
    std::array<std::byte, 64> out{};
    REQUIRE(memory.read_exactly(start + kPage - 32, out));
    memory.end_hold();
    target.map(start, std::vector<std::byte>(2 * kPage, std::byte{3}));  // it goes on
    memory.set_shadow(::getpid());
    REQUIRE(memory.read_exactly(start + kPage - 32, out));
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(out.at(i) == (i < 32 ? std::byte{2} : std::byte{1}));
    ::munmap(pages, 2 * kPage);
}

TEST_CASE("a torn pointer into the last page is not followed into all of the address space") {
    test::FakeMemory target;
    probe::ShadowMemory memory(target);
    std::array<std::byte, 64> out{};
    for (const std::uint64_t at :
         {~std::uint64_t{0} - 4000, ~std::uint64_t{0} - 70, ~std::uint64_t{0} - 10}) {
        memory.begin_hold();
        CHECK(memory.read_up_to(base::Address(at), out) == 0);
        memory.end_hold();
    }
}
