#include "../../../src/probe/shadow_counter.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include <array>
#include <cstring>
#include <initializer_list>

using namespace memattach;
using probe::Argument;
using probe::CounterStub;
using probe::PlannedSite;
using probe::ShadowCounters;
using probe::SiteKind;
using probe::Stubs;

namespace {

/// A function in memory of its own, with a stub and counters next to it.
class Patched {
  public:
    Patched(std::initializer_list<int> code, SiteKind kind, probe::Arguments args,
            Stubs stubs = Stubs::counting) {
        constexpr std::size_t kBytes = 0x10000;
        void* memory =
            ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(memory != MAP_FAILED);
        base_ = static_cast<std::byte*>(memory);
        std::size_t at = 0;
        for (const int value : code) base_[at++] = static_cast<std::byte>(value);
        PlannedSite site;
        site.site.kind = kind;
        site.site.args = args;
        site.address = address_of(0);
        std::memcpy(site.code.data(), base_, site.code.size());
        stub_ = probe::make_counter(site, 3, 1, address_of(0x1000), address_of(0x2000), stubs);
        REQUIRE(stub_);
        std::memcpy(base_ + 0x1000, stub_->code.data(), stub_->size_bytes);
        std::memcpy(base_, stub_->jump.data(), stub_->jump.size());
        counters().countdown.fill(ShadowCounters::kNever);
        counters().big_bytes = ShadowCounters::kNever;
        counters().watched.fill(ShadowCounters::kNobody);
        counters().until_mark = ShadowCounters::kNever;
        counters().last_mark = ShadowCounters::kMarks;
    }
    ~Patched() { ::munmap(base_, 0x10000); }
    Patched(const Patched&) = delete;
    Patched& operator=(const Patched&) = delete;

    std::uint64_t operator()(std::uint64_t a, std::uint64_t b = 0) const {
        return reinterpret_cast<std::uint64_t (*)(std::uint64_t, std::uint64_t)>(base_)(a, b);
    }
    [[nodiscard]] ShadowCounters& counters() const {
        return *reinterpret_cast<ShadowCounters*>(base_ + 0x2000);
    }
    [[nodiscard]] std::uint64_t address_of(std::size_t offset) const {
        return reinterpret_cast<std::uint64_t>(base_ + offset);
    }
    /// Calls it in a child that is traced: whether it stopped in the stub, and what it returned nonetheless.
    bool stops(std::uint64_t a, std::uint64_t b, std::uint64_t expected) const {
        const pid_t child = ::fork();
        if (child == 0) {
            ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
            ::_exit((*this)(a, b) == expected ? 0 : 1);
        }
        int status = 0;
        bool stopped = false;
        REQUIRE(::waitpid(child, &status, 0) == child);
        while (WIFSTOPPED(status)) {
            user_regs_struct regs{};
            ::ptrace(PTRACE_GETREGS, child, nullptr, &regs);
            CHECK(regs.rip == address_of(0x1000) + stub_->stop_offset);
            CHECK(regs.rdi == a);
            CHECK(regs.rsi == b);
            stopped = true;
            ::ptrace(PTRACE_CONT, child, nullptr, nullptr);
            REQUIRE(::waitpid(child, &status, 0) == child);
        }
        CHECK(WIFEXITED(status));
        CHECK(WEXITSTATUS(status) == 0);
        return stopped;
    }

  private:
    std::byte* base_ = nullptr;
    std::optional<CounterStub> stub_;
};

/// push rbx; mov rbx, rdi; lea rax, [rbx + rsi + 1]; pop rbx; ret
constexpr std::initializer_list<int> kSum = {0x53, 0x48, 0x89, 0xFB, 0x48, 0x8D,
                                             0x44, 0x33, 0x01, 0x5B, 0xC3};

probe::Arguments size_and_count() {
    probe::Arguments args;
    args.size = Argument::rdi;
    args.count = Argument::rsi;
    return args;
}

}  // namespace

TEST_CASE("a stub counts and changes nothing") {
    const Patched sum(kSum, SiteKind::allocate, size_and_count());
    for (std::uint64_t i = 0; i < 1000; ++i) CHECK(sum(i, 5) == i + 6);
    CHECK(sum.counters().hits[3] == 1000);
    CHECK(sum.counters().hits[2] == 0);
    CHECK(sum.counters().countdown[1] == ShadowCounters::kNever - 1000);
    CHECK(sum.counters().countdown[0] == ShadowCounters::kNever);
}

TEST_CASE("a stub stops at the hit it was told, at big requests, and goes on") {
    const Patched sum(kSum, SiteKind::allocate, size_and_count());
    CHECK_FALSE(sum.stops(1, 2, 4));
    sum.counters().countdown[1] = 1;
    CHECK(sum.stops(1, 2, 4));
    sum.counters().countdown[1] = 2;
    CHECK_FALSE(sum.stops(1, 2, 4));
    sum.counters().big_bytes = 100;
    CHECK_FALSE(sum.stops(100, 100, 201));
    CHECK(sum.stops(101, 1, 103));
    CHECK(sum.stops(1, 101, 103));
}

TEST_CASE("a stub notes the time every few hits, and stops with the last mark") {
    const Patched sum(kSum, SiteKind::allocate, size_and_count());
    sum.counters().mark_every = 3;
    sum.counters().until_mark = 3;
    const std::uint64_t before = __rdtsc();
    for (std::uint64_t i = 0; i < 10; ++i) CHECK(sum(i, 5) == i + 6);
    CHECK(sum.counters().marked == 3);
    CHECK(sum.counters().until_mark == 2);
    CHECK(before <= sum.counters().marks[0]);
    CHECK(sum.counters().marks[0] < sum.counters().marks[1]);
    CHECK(sum.counters().marks[1] < sum.counters().marks[2]);
    CHECK(sum.counters().marks[2] <= __rdtsc());
    CHECK(sum.counters().marks[3] == 0);
    sum.counters().last_mark = 4;
    CHECK_FALSE(sum.stops(1, 2, 4));  // in a copy of this process
    sum.counters().until_mark = 1;
    CHECK(sum.stops(1, 2, 4));
}

TEST_CASE("a stub that is only to mark does nothing else") {
    const Patched sum(kSum, SiteKind::allocate, size_and_count(), Stubs::marking);
    sum.counters().mark_every = sum.counters().until_mark = 2;
    sum.counters().countdown[1] = 1;
    sum.counters().big_bytes = 0;
    for (std::uint64_t i = 0; i < 5; ++i) CHECK(sum(i, 5) == i + 6);
    CHECK(sum.counters().marked == 2);
    CHECK(sum.counters().until_mark == 1);
    CHECK(sum.counters().hits[3] == 0);
    CHECK(sum.counters().countdown[1] == 1);
    sum.counters().last_mark = 3;
    CHECK(sum.stops(1, 2, 4));
}

TEST_CASE("an entry notes the time and changes nothing else") {
    constexpr std::size_t kBytes = 0x8000;
    void* memory =
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    auto* const base = static_cast<std::byte*>(memory);
    const auto at = reinterpret_cast<std::uint64_t>(base);
    auto& counters = *reinterpret_cast<ShadowCounters*>(base + 0x1000);
    const probe::EntryStub entry = probe::make_entry(at, at + 0x1000);
    REQUIRE(entry.size_bytes > 0);
    REQUIRE(entry.size_bytes < entry.code.size());
    std::memcpy(base, entry.code.data(), entry.size_bytes);
    // mov [rsi], rax; mov [rsi + 8], rdx; pushfq; pop [rsi + 16]; ret
    constexpr std::array<unsigned char, 12> kTell{0x48, 0x89, 0x06, 0x48, 0x89, 0x56,
                                                  0x08, 0x9C, 0x8F, 0x46, 0x10, 0xC3};
    std::memcpy(base + 0x800, kTell.data(), kTell.size());
    counters.entry = at + 0x800;
    std::array<std::uint64_t, 3> told{};
    std::uint64_t rax = 0x1122334455667788, rdx = 0x99aabbccddeeff00, flags = 0;
    const std::uint64_t before = __rdtsc();
    // NOLINTNEXTLINE(hicpp-no-assembler)
    __asm__ volatile(
        "sub $128, %%rsp\n\tstc\n\tpushfq\n\tpop %[flags]\n\tcall *%[entry]\n\tlea 128(%%rsp), %%rsp"
        : "+a"(rax), "+d"(rdx), [flags] "=&r"(flags)
        : [entry] "r"(base), "S"(told.data())
        : "memory", "cc");
    CHECK(told[0] == 0x1122334455667788);
    CHECK(told[1] == 0x99aabbccddeeff00);
    CHECK(told[2] == flags);
    CHECK((flags & 1) == 1);
    CHECK(before <= counters.start_ticks);
    CHECK(counters.start_ticks <= __rdtsc());
    ::munmap(memory, kBytes);
}

TEST_CASE("a stub stops where a watched block ends") {
    probe::Arguments args;
    args.old = Argument::rdi;
    const Patched sum(kSum, SiteKind::release, args);
    CHECK_FALSE(sum.stops(0, 0, 1));
    CHECK_FALSE(sum.stops(0x7f0012345670, 0, 0x7f0012345671));
    sum.counters().watched[0x7f0012345670 / 16 % ShadowCounters::kWatched] = 0x7f0012345670;
    CHECK(sum.stops(0x7f0012345670, 0, 0x7f0012345671));
    CHECK_FALSE(sum.stops(0x7f0012345670 + 16 * ShadowCounters::kWatched, 0,
                          0x7f0012345671 + 16 * ShadowCounters::kWatched));
}

TEST_CASE("displaced instructions are moved with what they refer to") {
    // lea rax, [rip + 0x100]; add rax, rdi; ret
    const Patched relative({0x48, 0x8D, 0x05, 0x00, 0x01, 0x00, 0x00, 0x48, 0x01, 0xF8, 0xC3},
                           SiteKind::allocate, size_and_count());
    CHECK(relative(5) == relative.address_of(7 + 0x100) + 5);
    // test rdi, rdi; je +3; mov rax, rdi (ret behind); xor eax, eax; ret
    const Patched branch(
        {0x48, 0x85, 0xFF, 0x74, 0x04, 0x48, 0x89, 0xF8, 0xC3, 0xB8, 0x63, 0x00, 0x00, 0x00, 0xC3},
        SiteKind::allocate, size_and_count());
    CHECK(branch(42) == 42);
    CHECK(branch(0) == 99);
    CHECK(branch.counters().hits[3] == 2);
}

TEST_CASE("what can't be moved gets no stub") {
    PlannedSite site;
    site.site.args = size_and_count();
    site.address = 0x500000;
    site.code.fill(std::byte{0xC3});  // ret
    CHECK_FALSE(probe::make_counter(site, 0, 0, 0x600000, 0x601000, Stubs::counting));
    site.code.fill(std::byte{0x90});
    CHECK(probe::make_counter(site, 0, 0, 0x600000, 0x601000, Stubs::counting));
    CHECK_FALSE(
        probe::make_counter(site, 0, 0, 0x600000 + (std::uint64_t{3} << 30), 0x601000, Stubs::counting));
}
