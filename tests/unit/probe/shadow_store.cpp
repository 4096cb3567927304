#include "../../../src/probe/shadow_store.h"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <cstring>

using namespace memattach;

namespace {

constexpr std::uint64_t kPage = 4096;

/// What the shadow has at `page`'s address, here at another one.
struct View {
    explicit View(const probe::ShadowStore& store, std::uint64_t page)
        : bytes(static_cast<std::byte*>(
              ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, store.fd(), static_cast<off_t>(page)))) {
        REQUIRE(bytes != MAP_FAILED);
    }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    ~View() { ::munmap(bytes, kPage); }
    std::byte* bytes;
};

}  // namespace

TEST_CASE("a page of the store is at its address in the file, as long as it isn't dropped") {
    probe::ShadowStore store;
    REQUIRE(store.fd() >= 0);
    for (const std::uint64_t page :
         std::initializer_list<std::uint64_t>{0x10000, 0x7fc4320fd000, (1ULL << 47) - kPage}) {
        INFO("page ", page);
        std::byte* place = store.at(page);
        REQUIRE(place != nullptr);
        CHECK(place[0] == std::byte{0});
        std::memset(place, 0x5A, kPage);
        CHECK(store.at(page) == place);
        const View view(store, page);
        CHECK(std::memcmp(view.bytes, place, kPage) == 0);
        store.drop(page);
        CHECK(view.bytes[17] == std::byte{0});
    }
    CHECK(store.at(1ULL << 47) == nullptr);
}

TEST_CASE("pages in a row are in a row, up to a window's end") {
    probe::ShadowStore store;
    const std::uint64_t start = 0x7000'0000'0000;
    CHECK(store.at(start + kPage) == store.at(start) + kPage);
    CHECK(store.at(start + 5 * kPage) == store.at(start) + 5 * kPage);
}

TEST_CASE("a store has room for so many stretches of memory") {
    probe::ShadowStore store;
    std::uint64_t page = 0;
    std::size_t stretches = 0;
    while (store.at(page) != nullptr && stretches < 100'000) {
        page += 16 << 20;
        ++stretches;
    }
    CHECK(stretches == 4096);
    CHECK(store.is_full());
    std::memset(store.at(0), 0x5A, kPage);
    store.clear();
    CHECK_FALSE(store.is_full());
    REQUIRE(store.at(page) != nullptr);
    CHECK(store.at(0)[0] == std::byte{0});
}
