// What the tracer asks and does about single threads, stops apart.

#include <fcntl.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "memattach/probe/tracer.h"
#include "tracer_task.h"

namespace memattach::probe {

namespace {

/// While stops follow each other so closely their threads aren't asked for their processor.
constexpr std::uint64_t kAskAgainNs = 200'000;
/// The same where asking means opening a file of /proc; and the time between two moves of the tracer.
constexpr std::uint64_t kStayNs = 2'000'000;

/// struct rseq (include/uapi/linux/rseq.h, Linux 4.18): the thread's processor, as of its last return to user
/// mode, in its second word. glibc registers one for each thread from 2.35 on; where it is can be asked since
/// Linux 5.13.
struct RseqConfiguration {
    std::uint64_t address;
    std::uint32_t size_bytes, signature, flags, padding;
};
constexpr auto kGetRseqConfiguration = static_cast<__ptrace_request>(0x420f);

}  // namespace

/// A stop takes 12 to 16 µs where both sides share a processor and up to 200 µs where they don't. So the
/// tracer runs where the thread ran that it serves, and keeps the other processors from looking idle.
void Tracer::stay_beside(pid_t tid, Thread& thread) {
    if (stop_start_ns_ - cpu_checked_ns_ >= kAskAgainNs) {
        const std::uint64_t asked_ns = stop_start_ns_;
        if (const auto cpu = noted_cpu(tid, thread)) {
            thread_cpu_ = *cpu;
            cpu_checked_ns_ = asked_ns;
        } else if (asked_ns - cpu_checked_ns_ >= kStayNs) {
            thread_cpu_ = last_cpu_of(pid_, tid).value_or(-1);
            cpu_checked_ns_ = asked_ns;
            thread.rseq = 0;
        }
        if (cpu_checked_ns_ == asked_ns) judge_holding();
    }
    hold_thread(stop_start_ns_);
}

void Tracer::hold_thread(std::uint64_t now_ns) {
    if (thread_cpu_ == cpu_ && holds_) occupants_.occupy(cpu_, now_ns);
}

/// To wake something on another processor takes 3 to 12 µs in a virtual machine, and 30 to 120 where that one
/// has been asleep for a while. It is for nothing where the other one is busy anyway, and where the kernel
/// takes a processor that its host hasn't scheduled for no idle one (available_idle_cpu() in
/// kernel/sched/syscalls.c): one that is left alone soon is like that, and each occupant wakes it again. A
/// thread that moves costs some 130 µs. So a few stops after one has moved threads are let go without being
/// held in any way, until the next one moves; where that is soon, again and again, after more and more of
/// them.
void Tracer::judge_holding() {
    constexpr int kFewest = 4, kMost = 256, kWorthwhile = 16;
    const bool stayed = thread_cpu_ == cpu_;
    if (holds_ && !stayed) return;  // nobody held it there
    ++judged_;
    if (holds_ ? judged_ < held_stops_ : stayed) return;
    if (!holds_) held_stops_ = judged_ > kWorthwhile ? kFewest : std::min(2 * held_stops_, kMost);
    holds_ = !holds_;
    judged_ = 0;
}

/// Once the thread has been let go: it needn't wait for this.
void Tracer::follow_thread() {
    const auto move = [](pid_t task, int cpu) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(static_cast<std::size_t>(cpu), &set);
        return sched_setaffinity(task, sizeof set, &set) == 0;
    };
    const bool elsewhere = thread_cpu_ >= 0 && thread_cpu_ < CPU_SETSIZE && thread_cpu_ != cpu_;
    if (elsewhere && stop_start_ns_ - moved_ns_ >= kStayNs) {
        moved_ns_ = stop_start_ns_;
        if (move(0, thread_cpu_)) cpu_ = thread_cpu_;
    }
    const pid_t companion = companion_ == nullptr ? 0 : companion_->load(std::memory_order_relaxed);
    if (companion != 0 && companion_cpu_ != cpu_ && cpu_ >= 0) {
        companion_cpu_ = cpu_;
        move(companion, cpu_);
    }
}

std::optional<int> Tracer::noted_cpu(pid_t tid, Thread& thread) {
    constexpr std::uint64_t kNone = ~std::uint64_t{0};
    if (thread.rseq == 0) {
        RseqConfiguration found{};
        const long bytes = ptrace(kGetRseqConfiguration, tid, sizeof found, &found);
        thread.rseq = bytes >= static_cast<long>(sizeof found) && found.address != 0 ? found.address : kNone;
    }
    if (thread.rseq == kNone) return std::nullopt;
    const auto words = peek(tid, thread.rseq);
    if (!words || *words >> 32 >= CPU_SETSIZE) return std::nullopt;  // not registered any more
    return static_cast<int>(*words >> 32);
}

/// The processor time that a thread has used; exact while it is stopped. Its file is kept open for the next
/// time: that spares the thread two thirds of the wait.
std::optional<std::uint64_t> Tracer::thread_time_ns(pid_t tid) {
    if (thread_time_of_ != tid) {
        char path[64];
        std::snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid_, tid);
        thread_time_.reset(::open(path, O_RDONLY | O_CLOEXEC));
        thread_time_of_ = tid;
    }
    std::array<char, 128> text{};
    // A descriptor of a thread that is gone reads nothing, whatever has its id by now.
    if (::pread(thread_time_.get(), text.data(), text.size() - 1, 0) <= 0) {
        thread_time_of_ = 0;
        return std::nullopt;
    }
    return std::strtoull(text.data(), nullptr, 10);
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

std::uint64_t Tracer::exact_own_time_ns() const {
    return clock_.is_exact() && threads_.size() <= TargetClock::kMostThreads ? clock_.read_ns() : 0;
}

std::optional<std::uint64_t> Tracer::peek(pid_t tid, std::uint64_t address) {
    errno = 0;
    const long value = ptrace(PTRACE_PEEKDATA, tid, reinterpret_cast<void*>(address), nullptr);
    if (value == -1 && errno != 0) return std::nullopt;
    return static_cast<std::uint64_t>(value);
}

}  // namespace memattach::probe
