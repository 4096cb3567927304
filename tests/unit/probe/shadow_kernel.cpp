#include "../../../src/probe/shadow_kernel.h"

#include <doctest/doctest.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>

using namespace memattach;

namespace {

user_regs_struct call(long number, std::uint64_t rdi = 0, std::uint64_t rsi = 0, std::uint64_t rdx = 0,
                      std::uint64_t r10 = 0) {
    user_regs_struct registers{};
    registers.orig_rax = static_cast<unsigned long long>(number);
    registers.rdi = rdi;
    registers.rsi = rsi;
    registers.rdx = rdx;
    registers.r10 = r10;
    return registers;
}

}  // namespace

TEST_CASE("a shadow's memory grows without a kernel, the same way each time") {
    constexpr std::uint64_t kStart = 0x7000'0000'0000, kEnd = kStart + 0x10000;
    constexpr std::uint64_t kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    probe::ShadowKernel kernel;
    kernel.set_arena(kStart, kEnd);
    for (int run = 0; run < 2; ++run) {
        kernel.restart();
        CHECK(kernel.answer(call(SYS_mmap, 0, 5000, 3, kAnonymous)) == kStart);
        CHECK(kernel.answer(call(SYS_mmap, 0, 1, 3, kAnonymous)) == kStart + 0x2000);
        CHECK(kernel.has_given(kStart + 0x2000));
        CHECK_FALSE(kernel.has_given(kStart + 0x3000));
        CHECK(kernel.answer(call(SYS_munmap, kStart, 5000)) == 0U);
        CHECK(kernel.answer(call(SYS_brk, 0x5000'0000)) == 0x5000'0000U);
        CHECK(kernel.has_given(0x4fff'f000));
        CHECK_FALSE(kernel.has_given(0x5000'0000));
        CHECK(kernel.calls() == 4);
    }
    CHECK_FALSE(kernel.answer(call(SYS_mmap, 0, 0x20000, 3, kAnonymous)));  // more than there is
    CHECK_FALSE(kernel.answer(call(SYS_mmap, 0, 4096, 1, MAP_PRIVATE)));    // a file
    CHECK_FALSE(kernel.answer(call(SYS_mmap, kStart, 4096, 3, kAnonymous | MAP_FIXED)));
}

TEST_CASE("a shadow ends at system calls whose answer isn't known") {
    probe::ShadowKernel kernel;
    CHECK_FALSE(kernel.answer(call(SYS_getpid)));
    kernel.set_pid(4242);
    CHECK(kernel.answer(call(SYS_getpid)) == 4242U);
    // An event loop with work to do looks whether there is more; one without waits.
    CHECK(kernel.answer(call(SYS_epoll_wait, 5, 0, 64, 0)) == 0U);
    CHECK_FALSE(kernel.answer(call(SYS_epoll_wait, 5, 0, 64, static_cast<std::uint64_t>(-1))));
    CHECK_FALSE(kernel.answer(call(SYS_epoll_pwait, 5, 0, 64, 100)));
    CHECK(kernel.answer(call(SYS_futex, 0x1000, FUTEX_WAKE_PRIVATE, 1)) == 0U);
    CHECK_FALSE(kernel.answer(call(SYS_futex, 0x1000, FUTEX_WAIT_BITSET_PRIVATE, 2)));
    CHECK_FALSE(kernel.answer(call(SYS_read, 3, 0x1000, 100)));
}
