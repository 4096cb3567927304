#include "memattach/probe/shadow.h"

#include <elf.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "memattach/base/clock.h"
#include "processor_speed.h"

namespace memattach::probe {

bool Shadow::is_available() const {
    return shared_.state.load(std::memory_order_acquire) != ShadowShared::unavailable;
}

bool Shadow::is_ready() {
    std::uint32_t expected = ShadowShared::asleep;
    if (shared_.state.compare_exchange_strong(expected, ShadowShared::preparing)) wake();
    return shared_.state.load(std::memory_order_acquire) == ShadowShared::idle;
}

void Shadow::wake() {
    const std::uint64_t one = 1;
    if (::write(wake_fd_, &one, sizeof one) < 0) return;
}

void Shadow::announce() {
    shared_.announced.store(1, std::memory_order_release);
    wake();
}

/// Waits here: the thread would be the only one to gain from a processor that is let go. Reads meanwhile, on
/// the processor whose caches have what the thread has used.
void Shadow::submit(std::span<const ShadowWindow> windows, pid_t tid, const user_regs_struct& registers,
                    int own_cpu) {
    shared_.window_count = static_cast<std::uint32_t>(std::min(windows.size(), shared_.windows.size()));
    std::copy_n(windows.begin(), shared_.window_count, shared_.windows.begin());
    shared_.tid = tid;
    shared_.tracer_cpu = own_cpu;
    shared_.registers = registers;
    iovec area{shared_.extended_state.data(), shared_.extended_state.size()};
    shared_.state_bytes = ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &area) == 0 ? area.iov_len : 0;
    shared_.reads.begin();
    shared_.slowness_there.store(0, std::memory_order_relaxed);
    shared_.released.store(0, std::memory_order_relaxed);
    shared_.hold_over.store(0, std::memory_order_relaxed);
    shared_.state.store(ShadowShared::submitted, std::memory_order_release);
    wake();
    const std::uint64_t until_ns = base::monotonic_ns() + kLongestHoldNs;
    shared_.reads.help(target_, until_ns);
    shared_.slowness_there.store(log_slowness(), std::memory_order_release);
    while (shared_.released.load(std::memory_order_acquire) == 0 && base::monotonic_ns() < until_ns) {
        sched_yield();  // on a machine with one processor the keeper needs it
    }
    shared_.hold_over.store(1, std::memory_order_release);
}

std::optional<std::array<ShadowResult, 2>> Shadow::take() {
    const std::uint32_t state = shared_.state.load(std::memory_order_acquire);
    if (state == ShadowShared::unavailable) return std::array<ShadowResult, 2>{};  // nothing more will come
    if (state != ShadowShared::done) return std::nullopt;
    const std::array<ShadowResult, 2> results = shared_.results;
    shared_.state.store(ShadowShared::idle, std::memory_order_release);
    return results;
}

}  // namespace memattach::probe
