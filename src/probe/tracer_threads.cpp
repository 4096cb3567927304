// What the tracer asks and does about single threads, stops apart.

#include <sched.h>
#include <sys/ptrace.h>

#include <cerrno>
#include <ctime>
#include <iterator>

#include "memattach/probe/tracer.h"
#include "tracer_task.h"

namespace memattach::probe {

/// A stop takes 12 to 16 µs where both sides share a processor and up to 100 µs where they don't.
void Tracer::follow_cpu(pid_t tid, std::uint64_t now_ns) {
    constexpr std::uint64_t kIntervalNs = 2'000'000;
    if (now_ns - cpu_checked_ns_ < kIntervalNs) return;
    cpu_checked_ns_ = now_ns;
    const auto cpu = last_cpu_of(pid_, tid);
    if (!cpu || *cpu >= CPU_SETSIZE) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(*cpu), &set);
    if (*cpu != cpu_ && sched_setaffinity(0, sizeof set, &set) == 0) cpu_ = *cpu;
    const pid_t companion = companion_ == nullptr ? 0 : companion_->load(std::memory_order_relaxed);
    if (companion != 0 && companion_cpu_ != *cpu) {
        companion_cpu_ = *cpu;
        sched_setaffinity(companion, sizeof set, &set);
    }
}

std::optional<pid_t> Tracer::interrupt_running(std::mt19937_64& random) {
    if (threads_.empty()) return std::nullopt;
    // From a random one on, in the table's own order.
    auto at = std::next(threads_.begin(), static_cast<std::ptrdiff_t>(random() % threads_.size()));
    for (std::size_t i = 0; i < threads_.size(); ++i, ++at) {
        if (at == threads_.end()) at = threads_.begin();
        auto& [tid, thread] = *at;
        if (thread.foreign || thread.fresh || thread.asked || state_of(tid) != 'R') continue;
        if (ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0) continue;
        thread.asked = true;
        return tid;
    }
    return std::nullopt;
}

std::uint64_t Tracer::own_time_ns() const {
    timespec time{};
    // The clock of another process: include/linux/posix-timers.h make_process_cpuclock(), CPUCLOCK_SCHED.
    const auto clock = static_cast<clockid_t>((~static_cast<unsigned>(pid_) << 3) | 2U);
    if (clock_gettime(clock, &time) != 0) return 0;
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

std::optional<std::uint64_t> Tracer::peek(pid_t tid, std::uint64_t address) {
    errno = 0;
    const long value = ptrace(PTRACE_PEEKDATA, tid, reinterpret_cast<void*>(address), nullptr);
    if (value == -1 && errno != 0) return std::nullopt;
    return static_cast<std::uint64_t>(value);
}

}  // namespace memattach::probe
