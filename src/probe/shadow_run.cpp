// A shadow's runs: how it is let go, given what it misses, and stopped.

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "memattach/base/clock.h"
#include "shadow_space.h"

namespace memattach::probe {
namespace {

/// What a fault takes of the thread's own CPU time at least; as much as being let go and stopped does, where
/// that is dear: both are a few switches.
constexpr std::uint64_t kFaultNs = 9'000;
/// What a system call that isn't carried out would have taken outside of the kernel.
constexpr std::uint64_t kCallNs = 50;
/// A run that has gone so far is as good as over.
constexpr std::uint64_t kNearNs = 5'000;
/// From setting a timer to the shadow's going on.
constexpr std::uint64_t kResumeNs = 20'000;
constexpr std::uint64_t kLongestRunNs = 20'000'000;
/// More of them, and what they cost hides what is between them.
constexpr std::uint64_t kMostCalls = 64;

}  // namespace

std::uint64_t ShadowSpace::thread_cpu_ns() const {
    std::array<char, 64> text{};
    if (::pread(schedstat_.get(), text.data(), text.size() - 1, 0) <= 0) return 0;
    return std::strtoull(text.data(), nullptr, 10);
}

bool ShadowSpace::wait_stopped() {
    int status = 0;
    while (true) {
        const pid_t waited = ::waitpid(pid_, &status, __WALL);
        if (waited == pid_) break;
        if (waited < 0 && errno != EINTR) return false;
    }
    if (WIFSTOPPED(status)) return true;
    pid_ = -1;
    return false;
}

/// In a virtual machine setting a timer costs more than reading a page: it is set once for a run.
void ShadowSpace::set_timer(std::uint64_t at_ns) const {
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(at_ns / 1'000'000'000);
    when.it_value.tv_nsec = static_cast<long>(at_ns % 1'000'000'000);
    ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

ShadowSpace::Run ShadowSpace::run(std::uint64_t limit_ns,
                                  const std::function<bool(std::uint64_t)>& on_missing,
                                  const std::function<void()>& at_end) {
    Run out;
    const std::uint64_t before_ns = thread_cpu_ns();
    const std::uint64_t start_ns = base::monotonic_ns();
    std::uint64_t filled = 0;
    const auto fill = [&](std::uint64_t page) {
        out.page = page;
        if (!on_missing(page)) return false;
        ++filled;
        return true;
    };
    // The clock goes on while the shadow waits for pages.
    const auto left = [&]() -> std::uint64_t {
        const std::uint64_t now_ns = base::monotonic_ns();
        if (filled + calls_ == 0 || now_ns - start_ns > kLongestRunNs + limit_ns) return 0;
        const std::uint64_t least_ns = empty_ns_ + calls_ * call_ns_ + filled * std::max(kFaultNs, empty_ns_);
        const std::uint64_t used_ns = thread_cpu_ns() - before_ns;
        const std::uint64_t own_ns = used_ns - std::min(used_ns, least_ns);
        return own_ns + kNearNs >= limit_ns ? 0 : now_ns + limit_ns - own_ns + kResumeNs;
    };
    calls_ = 0;
    deadline_ns_ = 0;
    out.end = go_on(start_ns + limit_ns, fill, left, at_end);
    if (out.end == End::gone) return out;
    out.calls = calls_;
    const std::uint64_t used_ns = thread_cpu_ns() - before_ns;
    out.cpu_ns = used_ns - std::min(used_ns, calls_ * call_ns_) + calls_ * kCallNs;
    return out;
}

/// SIGCHLD is blocked but for the wait, so that a stop ends it.
ShadowSpace::End ShadowSpace::go_on(std::uint64_t until_ns,
                                    const std::function<bool(std::uint64_t)>& on_missing,
                                    const std::function<std::uint64_t()>& left,
                                    const std::function<void()>& at_end) {
    if (deadline_ns_ != until_ns) set_timer(deadline_ns_ = until_ns);
    registers_.reset();
    if (ptrace(PTRACE_SYSEMU, pid_, nullptr, nullptr) != 0) return End::gone;
    sigset_t waiting;
    sigprocmask(SIG_SETMASK, nullptr, &waiting);
    sigdelset(&waiting, SIGCHLD);
    End end = End::limit;
    while (true) {
        std::array<pollfd, 2> ready{pollfd{faults_.get(), POLLIN, 0}, pollfd{timer_.get(), POLLIN, 0}};
        if (::ppoll(ready.data(), ready.size(), nullptr, &waiting) < 0) {
            int status = 0;
            if (::waitpid(pid_, &status, WNOHANG | __WALL) != pid_) continue;  // a stop of a run before
            if (!WIFSTOPPED(status)) {
                pid_ = -1;
                return End::gone;
            }
            // It was asked to stop when it just had, by itself: that stop comes in the next run.
            const bool is_late = status >> 16 == PTRACE_EVENT_STOP;
            if (is_late && ptrace(PTRACE_SYSEMU, pid_, nullptr, nullptr) == 0) continue;
            if (answer_call()) {
                ++calls_;
                continue;
            }
            end = End::stopped;
            break;
        }
        uffd_msg message{};
        if (ready[0].revents != 0 && ::read(faults_.get(), &message, sizeof message) == sizeof message &&
            message.event == UFFD_EVENT_PAGEFAULT) {
            if (on_missing(message.arg.pagefault.address & ~(kPage - 1))) continue;
            end = End::missing_page;
            break;
        }
        if (ready[1].revents == 0) continue;
        const std::uint64_t next_ns = left ? left() : 0;
        if (next_ns == 0) break;
        set_timer(deadline_ns_ = next_ns);
    }
    if (at_end) at_end();
    if (end != End::stopped && (ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) != 0 || !wait_stopped()))
        return End::gone;
    return end;
}

/// Lets the thread go on behind a system call that can be answered.
bool ShadowSpace::answer_call() {
    auto regs = registers();
    if (!regs || kernel_.calls() >= kMostCalls || static_cast<std::int64_t>(regs->orig_rax) < 0) return false;
    const auto result = kernel_.answer(*regs);
    if (!result) return false;
    if (regs->orig_rax == SYS_getpid) inline_call(regs->rip, static_cast<std::uint32_t>(*result));
    regs->rax = *result;
    return set_registers(*regs) && ptrace(PTRACE_SYSEMU, pid_, nullptr, nullptr) == 0;
}

/// asyncio asks for the process's id up to a hundred times per task before 3.12, and a stop takes ten times
/// as long as what lies between two: from the second time on the number is there without one.
void ShadowSpace::inline_call(std::uint64_t behind, std::uint32_t result) {
    // mov eax, SYS_getpid; syscall → mov eax, result; xchg ax, ax
    constexpr std::array<std::uint8_t, 7> kCallsGetpid{0xB8, SYS_getpid, 0, 0, 0, 0x0F, 0x05};
    std::array<std::uint8_t, kCallsGetpid.size()> code{};
    const auto at = static_cast<off_t>(behind - code.size());
    if (::pread(memory_.get(), code.data(), code.size(), at) != static_cast<ssize_t>(code.size()) ||
        code != kCallsGetpid)
        return;
    std::memcpy(code.data() + 1, &result, sizeof result);
    code[5] = 0x66;
    code[6] = 0x90;
    // Where that can't be written the next call is answered as this one was.
    static_cast<void>(::pwrite(memory_.get(), code.data(), code.size(), at) < 0);
}

void ShadowSpace::set_cpu(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(cpu), &set);
    sched_setaffinity(pid_, sizeof set, &set);
}

void ShadowSpace::measure_switches() {
    const std::uint64_t end = areas_.front().at + kPage;
    empty_ns_ = least_cpu_ns(end - 1);  // an int3
    if (empty_ns_ == 0) return;
    const std::uint64_t calls_ns = least_cpu_ns(end - kCallsBytes);
    const std::uint64_t apart_ns = empty_ns_ + kCalls * kCallNs;
    call_ns_ = calls_ns > apart_ns ? (calls_ns - apart_ns) / kCalls : empty_ns_;
}

/// 0 where a run can't be made.
std::uint64_t ShadowSpace::least_cpu_ns(std::uint64_t pc) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, pid_, nullptr, &registers) != 0) return 0;
    registers.orig_rax = ~0ULL;
    registers.rip = pc;
    std::uint64_t least = ~0ULL;
    for (int i = 0; i < 8; ++i) {
        kernel_.restart();
        if (ptrace(PTRACE_SETREGS, pid_, nullptr, &registers) != 0) return 0;
        const Run done = run(10'000'000, [](std::uint64_t) { return false; });
        if (done.end != End::stopped) return 0;
        least = std::min(least, done.cpu_ns);
    }
    return least;
}

bool ShadowSpace::has_faulted() {
    siginfo_t info{};
    if (ptrace(PTRACE_GETSIGINFO, pid_, nullptr, &info) == 0 && info.si_signo != SIGTRAP) return true;
    const auto now = registers();
    return now && now->orig_rax == SYS_writev && now->rdi == STDERR_FILENO;
}

std::optional<std::uint64_t> ShadowSpace::unmapped_address() const {
    siginfo_t info{};
    if (ptrace(PTRACE_GETSIGINFO, pid_, nullptr, &info) != 0 || info.si_signo != SIGSEGV ||
        info.si_code != SEGV_MAPERR)
        return std::nullopt;
    return reinterpret_cast<std::uint64_t>(info.si_addr);
}

}  // namespace memattach::probe
