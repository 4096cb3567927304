// A shadow's runs: how it is let go, given what it misses, and stopped.

#include <fcntl.h>
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
#include <cstddef>
#include <cstring>

#include "memattach/base/clock.h"
#include "shadow_space.h"

namespace memattach::probe {
namespace {

/// What a system call that isn't carried out would have taken outside of the kernel.
constexpr double kCallNs = 50;
/// A run that has gone so far is as good as over.
constexpr double kNearNs = 5'000;
/// On a virtual machine whose page tables are kept by its hypervisor's software the first instruction may
/// come 100 µs after the shadow was let go.
constexpr double kMostStartingNs = 300'000;
constexpr std::uint64_t kLongestRunNs = 20'000'000;
/// More of them, and what they cost hides what is between them.
constexpr std::uint64_t kMostCalls = 64;

}  // namespace

/// Own time so far of a run that has begun.
double ShadowSpace::present_ns(std::uint64_t ticks) const {
    const std::uint64_t start = counters_->start_ticks;
    return ticks > start ? ticks_.ns(ticks - start) - stalled_ns_ : 0;
}

/// It goes on now, and has been waiting for this process since that was told: with `marks`, and for
/// `besides_ns` more.
void ShadowSpace::add_stall(std::uint64_t marks, double besides_ns) {
    const double ns = ticks_.ns(__rdtsc() - end_ticks_) + besides_ns;
    stalls_.push_back({marks, ns});
    stalled_ns_ += ns;
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
    const std::uint64_t start_ns = base::monotonic_ns();
    const std::uint64_t start_ticks = __rdtsc();
    // The clock goes on while the shadow waits.
    const auto left = [&]() -> std::uint64_t {
        const std::uint64_t now_ns = base::monotonic_ns();
        if (now_ns - start_ns > kLongestRunNs + limit_ns) return 0;
        const double own_ns = counters_->start_ticks == 0 ? 0 : present_ns(__rdtsc());
        const double rest_ns = static_cast<double>(limit_ns) - own_ns;
        return rest_ns < kNearNs ? 0 : now_ns + static_cast<std::uint64_t>(rest_ns);
    };
    calls_ = 0;
    stalls_.clear();
    stalled_ns_ = 0;
    deadline_ns_ = 0;
    out.end = go_on(start_ns + static_cast<std::uint64_t>(starting_ns_) + limit_ns, on_missing, left, at_end);
    if (out.end == End::gone) return out;
    const std::uint64_t first_ticks = counters_->start_ticks;
    out.has_begun = first_ticks != 0;
    if (!out.has_begun) return out;
    if (first_ticks > start_ticks && first_ticks < end_ticks_)
        starting_ns_ += (std::min(ticks_.ns(first_ticks - start_ticks), kMostStartingNs) - starting_ns_) / 8;
    // Whatever the shadow made of the counters, it didn't take longer than that.
    const double all_ns = ticks_.ns(end_ticks_ - start_ticks);
    const double ending_ns = out.end == End::limit ? 0 : stop_ns_;
    out.own_ns = std::clamp(present_ns(end_ticks_) - ending_ns, 0.0, all_ns);
    const std::size_t marks = std::min<std::size_t>(counters_->marked, ShadowCounters::kMarks);
    out.marks_ns.reserve(marks);
    double stalled_ns = 0;
    auto stall = stalls_.begin();
    for (std::size_t i = 0; i < marks; ++i) {
        for (; stall != stalls_.end() && stall->marks <= i; ++stall) stalled_ns += stall->ns;
        const std::uint64_t at = counters_->marks[i];
        const double ns = at > first_ticks ? ticks_.ns(at - first_ticks) - stalled_ns : 0;
        out.marks_ns.push_back(std::clamp(ns, i > 0 ? out.marks_ns.back() : 0.0, all_ns));
    }
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
        const bool by_signal = ::ppoll(ready.data(), ready.size(), nullptr, &waiting) < 0;
        end_ticks_ = __rdtsc();
        if (by_signal) {
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
            const std::uint64_t marks = counters_->marked;  // once it has its page it may go on at once
            if (on_missing(message.arg.pagefault.address & ~(kPage - 1))) {
                add_stall(marks, fault_ns_);
                continue;
            }
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
    if (!set_registers(*regs)) return false;
    add_stall(counters_->marked, call_ns_ - kCallNs);
    return ptrace(PTRACE_SYSEMU, pid_, nullptr, nullptr) == 0;
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

bool ShadowSpace::set_cpu(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(cpu), &set);
    return sched_setaffinity(pid_, sizeof set, &set) == 0;
}

void ShadowSpace::measure_switches(int data_fd) {
    const std::uint64_t end = areas_.front().at + kPage;
    const auto none = [](std::uint64_t) { return false; };
    const double stop_ns = least_ns(end - 1, none);  // an int3
    if (stop_ns <= 0) return;
    stop_ns_ = stop_ns;
    call_ns_ = kCallNs;  // nothing is taken off
    call_ns_ = std::max(0.0, least_ns(end - kCallsBytes, none) / kCalls);
    // A page that was there for one run is away for the next.
    const auto drop = [&](std::uint64_t page, std::uint64_t bytes) {
        return ::fallocate(data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page),
                           static_cast<off_t>(bytes)) == 0;
    };
    const auto bring = [&](std::uint64_t page) {
        const std::byte zero{};
        return ::pwrite(data_fd, &zero, 1, static_cast<off_t>(page)) == 1 && wake(page);
    };
    const auto drop_all = [&] { return drop(arena_, kTouches * kPage); };
    fault_ns_ = std::max(0.0, least_ns(end - kCallsBytes - kTouchesBytes, bring, drop_all) / kTouches);
    ready_ = drop_all();
}

/// What the code at `pc` takes up to an int3; 0 where a run can't be made.
double ShadowSpace::least_ns(std::uint64_t pc, const std::function<bool(std::uint64_t)>& on_missing,
                             const std::function<bool()>& before) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, pid_, nullptr, &registers) != 0) return 0;
    registers.rip = areas_.front().at + kPage - kTailBytes;
    registers.rdi = arena_;
    double least = 0;
    for (int i = 0; i < 8; ++i) {
        if (before && !before()) return 0;
        kernel_.restart();
        begin_marks(pc);
        if (!set_registers(registers)) return 0;
        const Run done = run(10'000'000, on_missing);
        if (done.end != End::stopped || !done.has_begun) return 0;
        if (i == 0 || done.own_ns < least) least = done.own_ns;
    }
    return least;
}

void ShadowSpace::touch(std::span<const std::uint64_t> pages) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, pid_, nullptr, &registers) != 0) return;
    const std::uint64_t area = areas_.front().at;
    while (!pages.empty()) {
        const std::size_t count = std::min(pages.size(), counters_->marks.size());
        std::copy_n(pages.begin(), count, counters_->marks.begin());
        pages = pages.subspan(count);
        registers.rip = area + kPage - kCallsBytes - kTouchesBytes - kTouchAllBytes;
        registers.rsi = area + kPage + offsetof(ShadowCounters, marks);
        registers.rcx = count;
        if (!set_registers(registers)) return;
        const auto none = [](std::uint64_t) { return false; };
        // Not any more: it will find out itself.
        if (go_on(base::monotonic_ns() + kLongestRunNs, none) != End::stopped) return;
    }
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
