#include "memattach/probe/target_clock.h"

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>

#include "tracer_task.h"

namespace memattach::probe {

bool TargetClock::open_all(const std::vector<pid_t>& threads) {
    clocks_.clear();
    before_ns_ = read_late_ns();
    for (const pid_t tid : threads) {
        perf_event_attr attr{};
        attr.size = sizeof attr;
        attr.type = PERF_TYPE_SOFTWARE;
        attr.config = PERF_COUNT_SW_TASK_CLOCK;
        attr.inherit = 1;
        attr.inherit_thread = 1;  // by threads, not by processes
        attr.exclude_kernel = 1;  // what an unprivileged caller has to say; time is counted all the same
        attr.exclude_hv = 1;
        const long fd = ::syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (fd < 0) return false;
        clocks_.emplace_back(static_cast<int>(fd));
    }
    return true;
}

void TargetClock::follow() {
    constexpr int kTries = 3;
    for (int i = 0; i < kTries; ++i) {
        const std::vector<pid_t> threads = tasks_of(pid_);
        if (threads.empty() || threads.size() > kMostThreads || !open_all(threads)) break;
        // One that was started meanwhile, by a thread without a clock, has none.
        if (tasks_of(pid_) == threads) return;
    }
    clocks_.clear();
}

std::uint64_t TargetClock::read_ns() const {
    if (clocks_.empty()) return read_late_ns();
    std::uint64_t sum = before_ns_;
    for (const base::UniqueFd& clock : clocks_) {
        std::uint64_t count = 0;
        if (::read(clock.get(), &count, sizeof count) == sizeof count) sum += count;
    }
    return sum;
}

std::uint64_t TargetClock::read_late_ns() const {
    timespec time{};
    // The clock of another process: include/linux/posix-timers.h make_process_cpuclock(), CPUCLOCK_SCHED.
    const auto clock = static_cast<clockid_t>((~static_cast<unsigned>(pid_) << 3) | 2U);
    if (clock_gettime(clock, &time) != 0) return 0;
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

}  // namespace memattach::probe
