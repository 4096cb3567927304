#include "memattach/probe/large_entry.h"

#include <asm/prctl.h>
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <string>

#include "memattach/process/memory.h"

using namespace memattach;

namespace {

/// This process's own C library, whatever stands in front of it (a sanitizer does).
std::uint64_t address_of(const char* name) {
    static void* library = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    REQUIRE(library != nullptr);
    return reinterpret_cast<std::uint64_t>(dlsym(library, name));
}

/// As a program leaves it that has used it: a sanitizer's has never.
void use_malloc() {
    const auto malloc_there = reinterpret_cast<void* (*)(std::size_t)>(address_of("malloc"));
    const auto free_there = reinterpret_cast<void (*)(void*)>(address_of("free"));
    void* volatile block = malloc_there(100);
    free_there(block);
}

probe::SiteMap sites_of_glibc() {
    using probe::Argument;
    use_malloc();
    probe::SiteMap map;
    map.malloc_name = "glibc";
    const std::map<std::string, probe::Arguments> entries = {
        {"malloc", {.size = Argument::rdi}},
        {"calloc", {.size = Argument::rsi, .count = Argument::rdi}},
        {"realloc", {.size = Argument::rsi, .old = Argument::rdi}},
    };
    for (const auto& [name, args] : entries) {
        probe::Site site;
        site.symbol = name;
        site.args = args;
        site.kind = name == "realloc" ? probe::SiteKind::reallocate : probe::SiteKind::allocate;
        site.address = base::Address(address_of(name.c_str()));
        map.sites.push_back(site);
    }
    return map;
}

std::uint64_t fs_base() {
    std::uint64_t value = 0;
    syscall(SYS_arch_prctl, ARCH_GET_FS, &value);
    return value;
}

}  // namespace

TEST_CASE("the C library's malloc has a place that only large requests come by") {
    const process::LiveMemory memory(getpid());
    const auto large = probe::find_large_entry(memory, sites_of_glibc(), fs_base());
    REQUIRE(large);
    // malloc/malloc.c, largebin_index_64: chunks of 5 << 15 bytes and more, or of 11 << 12 in other builds
    const bool is_bound = large->least_bytes == (5 << 15) - 23 || large->least_bytes == (11 << 12) - 23;
    CHECK_MESSAGE(is_bound, large->least_bytes);
    CHECK(large->limit_bytes() == large->least_bytes - 1);
    // From malloc and from calloc, by one thread and by several.
    CHECK(large->ways.size() >= 2);
    std::byte there{};
    REQUIRE(memory.read_exactly(base::Address(large->address), std::span(&there, 1)));
    CHECK(there == large->original);
}

TEST_CASE("a thread there is told by where its calls return to") {
    const process::LiveMemory memory(getpid());
    const auto large = probe::find_large_entry(memory, sites_of_glibc(), fs_base());
    REQUIRE(large);
    for (const probe::LargeEntry::Way& way : large->ways) {
        std::array<std::uint64_t, 512> stack{};
        REQUIRE(way.return_slot_bytes + 8 <= sizeof stack);
        for (const auto& word : way.returns) stack.at(word.offset / 8) = word.value;
        stack.at(way.return_slot_bytes / 8) = 0x1234;
        user_regs_struct regs{};
        regs.rsp = reinterpret_cast<std::uint64_t>(stack.data());
        regs.rip = large->address;
        const std::array registers = {&regs.rax, &regs.rcx, &regs.rdx, &regs.rbx, &regs.rsp, &regs.rbp,
                                      &regs.rsi, &regs.rdi, &regs.r8,  &regs.r9,  &regs.r10, &regs.r11,
                                      &regs.r12, &regs.r13, &regs.r14, &regs.r15};
        *registers.at(large->size_register) = 1'000'016;
        const auto call = large->find_call(memory, regs);
        REQUIRE(call);
        CHECK(large->size_bytes(regs) == 1'000'000);
        CHECK(call->return_address == 0x1234);
        CHECK(call->stack_pointer == regs.rsp + way.return_slot_bytes);
        // From elsewhere: realloc, memalign.
        REQUIRE_FALSE(way.returns.empty());
        stack.at(way.returns.back().offset / 8) += 1;
        CHECK_FALSE(large->find_call(memory, regs));
        stack.at(way.returns.back().offset / 8) -= 1;
        *registers.at(large->size_register) = 1000;
        CHECK_FALSE(large->find_call(memory, regs));
    }
}

TEST_CASE("where malloc can't be followed there is no such place") {
    const process::LiveMemory memory(getpid());
    probe::SiteMap sites = sites_of_glibc();
    sites.malloc_name = "jemalloc";
    CHECK_FALSE(probe::find_large_entry(memory, sites, fs_base()));
    sites.malloc_name = "glibc";
    CHECK_FALSE(probe::find_large_entry(memory, sites, 0));
    for (probe::Site& site : sites.sites) site.address = base::Address(0x10);
    CHECK_FALSE(probe::find_large_entry(memory, sites, fs_base()));
    for (probe::Site& site : sites.sites) site.address = base::Address(address_of("getpid"));
    CHECK_FALSE(probe::find_large_entry(memory, sites, fs_base()));
}

TEST_CASE("which requests come by: malloc's, calloc's, and realloc's without an old block") {
    const probe::SiteMap map = sites_of_glibc();
    for (const probe::Site& site : map.sites) {
        user_regs_struct regs{};
        CHECK(probe::comes_by_large(site, regs));
        regs.rdi = 0x1000;
        CHECK(probe::comes_by_large(site, regs) == (site.symbol != "realloc"));
    }
}
