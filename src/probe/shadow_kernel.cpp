#include "shadow_kernel.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>

namespace memattach::probe {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMostHeapBytes = 256 << 20;  ///< below the heap's new end, as far as it may be new

}  // namespace

std::optional<std::uint64_t> ShadowKernel::answer(const user_regs_struct& registers) {
    ++calls_;
    switch (registers.orig_rax) {
        case SYS_brk:
            if (registers.rdi == 0) return std::nullopt;
            heap_end_ = registers.rdi;
            return heap_end_;
        case SYS_mmap: {
            const bool anonymous =
                (registers.r10 & (MAP_PRIVATE | MAP_ANONYMOUS)) == (MAP_PRIVATE | MAP_ANONYMOUS);
            const std::uint64_t bytes = (registers.rsi + kPage - 1) & ~(kPage - 1);
            if (!anonymous || (registers.r10 & MAP_FIXED) != 0 || bytes == 0 || bytes > arena_end_ - next_)
                return std::nullopt;
            const std::uint64_t at = next_;
            next_ += bytes;
            return at;
        }
        case SYS_munmap:
        case SYS_madvise:
        case SYS_mprotect:
        case SYS_sched_yield:
            return 0;
        case SYS_futex:
            if ((registers.rsi & FUTEX_CMD_MASK) == FUTEX_WAKE) return 0;
            return std::nullopt;
        case SYS_getpid:
            if (pid_ == 0) return std::nullopt;
            return static_cast<std::uint64_t>(pid_);
        // An event loop that has work to do only asks what else there is: most often nothing.
        case SYS_epoll_wait:
        case SYS_epoll_pwait:
            if (static_cast<std::int32_t>(registers.r10) != 0) return std::nullopt;
            return 0;
        default:
            return std::nullopt;
    }
}

bool ShadowKernel::has_given(std::uint64_t page) const {
    return (page >= arena_start_ && page < next_) || (page < heap_end_ && heap_end_ - page <= kMostHeapBytes);
}

}  // namespace memattach::probe
