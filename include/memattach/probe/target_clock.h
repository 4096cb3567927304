/// The processor time that all threads of a process have used, exact also while they run.
///
/// The kernel's clock of another process (clock_getcpuclockid(3)) doesn't know what its threads have used
/// since they were last scheduled or the timer ticked: with one that runs on another processor it moves in
/// steps of a tick, 1 to 10 ms (kernel/sched/cputime.c thread_group_cputime(), 6.18: only the calling
/// process's threads are brought up to date). A window of a millisecond can't be measured with it: where two
/// threads ran at a time such windows were taken for twice as long as they were. A perf task clock on each
/// thread is read where the thread runs.
///
///     TargetClock clock(pid);
///     clock.follow();               // once all threads are traced, so that new ones can't run meanwhile
///     clock.read_ns();
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "memattach/base/unique_fd.h"

namespace memattach::probe {

class TargetClock {
  public:
    explicit TargetClock(pid_t pid) : pid_(pid) {}

    /// Opens the task clocks; threads that these start have theirs without further ado. Where perf is refused
    /// (perf_event_paranoid), the kernel is older than 5.13, or there are more than kMostThreads, it goes by
    /// the kernel's clock of the process.
    void follow();
    /// The program was replaced, and its threads with it.
    void forget() { clocks_.clear(); }

    /// ns, interrupts and time that a hypervisor took included. Interrupts the processors where threads of
    /// the target run: some 10 µs in a virtual machine where two do.
    [[nodiscard]] std::uint64_t read_ns() const;
    /// By the kernel's clock of the process: 0.2 µs, and late by up to a tick for each thread that runs
    /// elsewhere.
    [[nodiscard]] std::uint64_t read_late_ns() const;
    [[nodiscard]] bool is_exact() const { return !clocks_.empty(); }

    static constexpr std::size_t kMostThreads = 32;

  private:
    [[nodiscard]] bool open_all(const std::vector<pid_t>& threads);

    pid_t pid_;
    std::vector<base::UniqueFd> clocks_;
    std::uint64_t before_ns_ = 0;  ///< what the process had used when they were opened
};

}  // namespace memattach::probe
