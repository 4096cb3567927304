#include "memattach/probe/page_reads.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

using namespace memattach;

namespace {

constexpr std::size_t kPage = probe::PageReads::kPageBytes;

/// Pages of this process, each filled with a number of its own, some of which can't be read.
struct Pages {
    explicit Pages(std::size_t pages) : count(pages) {
        bytes = static_cast<std::byte*>(
            ::mmap(nullptr, count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        REQUIRE(bytes != MAP_FAILED);
        for (std::size_t i = 0; i < count; ++i) std::memset(bytes + i * kPage, fill(i), kPage);
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    ~Pages() { ::munmap(bytes, count * kPage); }
    static int fill(std::size_t i) { return static_cast<int>(i * 7 % 251 + 1); }
    [[nodiscard]] std::uint64_t address(std::size_t i) const {
        return reinterpret_cast<std::uint64_t>(bytes + i * kPage);
    }
    std::size_t count;
    std::byte* bytes;
};

}  // namespace

TEST_CASE("two readers read every page once, to its place") {
    const Pages pages(1000);
    const process::LiveMemory memory(::getpid());
    const auto reads = std::make_unique<probe::PageReads>();
    std::vector<std::size_t> wanted;
    for (std::size_t i = 0; i < pages.count; ++i) {
        if (i % 13 != 0 && i % 29 != 0) wanted.push_back(i);
    }
    for (int round = 0; round < 20; ++round) {
        std::memset(reads->pool().data(), 0, wanted.size() * kPage);
        reads->clear();
        for (std::size_t place = 0; place < wanted.size(); ++place)
            reads->add(pages.address(wanted[place]), place);
        reads->begin();
        CHECK_FALSE(reads->is_over());
        std::thread other([&] { reads->help(memory); });
        reads->help(memory);
        other.join();
        REQUIRE(reads->is_over());
        for (const auto& run : reads->runs()) REQUIRE_FALSE(run.failed);
        for (std::size_t place = 0; place < wanted.size(); ++place) {
            const auto expected = static_cast<std::byte>(Pages::fill(wanted[place]));
            REQUIRE(reads->pool()[place * kPage] == expected);
            REQUIRE(reads->pool()[place * kPage + kPage - 1] == expected);
        }
    }
}

TEST_CASE("a page that can't be read fails few others") {
    const Pages pages(200);
    REQUIRE(::mprotect(pages.bytes + 100 * kPage, kPage, PROT_NONE) == 0);
    const process::LiveMemory memory(::getpid());
    const auto reads = std::make_unique<probe::PageReads>();
    std::size_t place = 0;
    for (std::size_t i = 0; i < pages.count; i += 2) reads->add(pages.address(i), place++);
    reads->begin();
    reads->help(memory);
    REQUIRE(reads->is_over());
    std::size_t failed = 0;
    for (const auto& run : reads->runs()) {
        if (run.page == pages.address(100)) CHECK(run.failed);
        failed += run.failed ? 1 : 0;
    }
    // Those read along with it are read again by whoever asked.
    CHECK(failed <= 8);
}

TEST_CASE("whoever is out of time leaves the rest to the other") {
    const Pages pages(500);
    const process::LiveMemory memory(::getpid());
    const auto reads = std::make_unique<probe::PageReads>();
    for (std::size_t i = 0; i < pages.count; i += 2) reads->add(pages.address(i), i / 2);
    reads->begin();
    reads->help(memory, 1);
    CHECK_FALSE(reads->is_over());
    std::size_t told = 0;
    reads->help(memory, ~std::uint64_t{0}, [&](std::size_t i) {
        CHECK_FALSE(reads->runs()[i].failed);
        ++told;
    });
    CHECK(reads->is_over());
    CHECK(told == reads->runs().size());
}

TEST_CASE("nothing to read is over at once") {
    const process::LiveMemory memory(::getpid());
    const auto reads = std::make_unique<probe::PageReads>();
    reads->clear();
    reads->begin();
    CHECK(reads->is_over());
    reads->help(memory);
    CHECK(reads->is_over());
}
