#include "memattach/probe/brief_stop.h"

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>

#include "memattach/base/clock.h"

namespace memattach::probe {
namespace {

/// A thread on a CPU stops within microseconds; one that waits for a CPU when it gets one.
constexpr std::uint64_t kPatienceNs = 50'000'000;
constexpr std::uint64_t kSpinNs = 50'000;

}  // namespace

BriefStops::~BriefStops() {
    release();
    retry_late();
}

/// Takes the news of a stop, if there is one. Exits are left for whoever waits for them: the target may be
/// our own child, whose status is passed on.
bool BriefStops::take_stop(int tid, int& signal) {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(tid), &info, WSTOPPED | WNOHANG | __WALL) != 0 ||
        info.si_pid != tid)
        return false;
    // si_status is the signal, with the ptrace event above it. PTRACE_EVENT_STOP is our interrupt or a group
    // stop (which a detached thread stays in); without an event a signal was about to be delivered.
    const int event = info.si_status >> 8;
    signal = event == 0 ? info.si_status : 0;
    return true;
}

void BriefStops::let_go(int tid, int signal) {
    ::ptrace(PTRACE_DETACH, tid, nullptr, static_cast<long>(signal));
}

void BriefStops::retry_late() {
    std::erase_if(late_, [this](int tid) {
        int signal = 0;
        if (take_stop(tid, signal)) {
            let_go(tid, signal);
            return true;
        }
        return ::kill(tid, 0) != 0 && errno == ESRCH;
    });
}

StopResult BriefStops::stop(int tid, StoppedRegisters& registers) {
    release();
    if (!late_.empty()) {
        retry_late();
        if (std::find(late_.begin(), late_.end(), tid) != late_.end()) return StopResult::late;
    }
    if (::ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) != 0) {
        error_ = errno;
        return error_ == ESRCH ? StopResult::gone : StopResult::refused;
    }
    since_ns_ = base::monotonic_ns();
    if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0) {
        error_ = errno;
        return StopResult::gone;
    }
    const std::uint64_t asked_ns = since_ns_;
    int signal = 0;
    while (!take_stop(tid, signal)) {
        since_ns_ = base::monotonic_ns();  // Not stopped yet; the time until here isn't the target's loss.
        const std::uint64_t waited = since_ns_ - asked_ns;
        if (waited > kPatienceNs) {
            late_.push_back(tid);
            return StopResult::late;
        }
        // Not to sit on the CPU that the thread needs.
        const std::timespec pause{0, 20'000};
        if (waited > kSpinNs) ::nanosleep(&pause, nullptr);
    }
    tid_ = tid;
    signal_ = signal;
    user_regs_struct regs{};
    if (::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) {
        release();
        return StopResult::gone;
    }
    registers.values = {regs.rax, regs.rbx, regs.rcx,    regs.rdx, regs.rsi, regs.rdi, regs.rbp,
                        regs.rsp, regs.rip, regs.eflags, regs.cs,  regs.ss,  regs.r8,  regs.r9,
                        regs.r10, regs.r11, regs.r12,    regs.r13, regs.r14, regs.r15};
    // The kernel keeps the system call's number there, and −1 when an interrupt came in user mode.
    registers.in_system_call = static_cast<std::int64_t>(regs.orig_rax) >= 0;
    return StopResult::stopped;
}

void BriefStops::release() {
    if (tid_ == 0) return;
    let_go(tid_, signal_);
    const std::uint64_t held = base::monotonic_ns() - since_ns_;
    total_ns_ += held;
    longest_ns_ = std::max(longest_ns_, held);
    tid_ = 0;
}

}  // namespace memattach::probe
