/// Keeps the machine's other processors from looking idle while a stop is served.
///
/// A stop costs 4 µs of CPU time and 10 µs in all where tracer and tracee share a processor, and 16 and 46 µs
/// where each wakes the other on another one (measured on a 2-core virtual machine). The tracer can choose
/// its processor; the tracee's is the kernel's choice, and at each wake-up it prefers an idle one
/// (select_idle_sibling() in kernel/sched/fair.c, Linux 2.6.23 to 6.18) to the one that the tracer is running
/// on. So that there is none, a thread of the lowest ordinary priority (SCHED_IDLE would count as idle) is
/// woken on each of the others when a stop begins. A processor isn't idle from the moment that something is
/// queued for it (idle_cpu() in kernel/sched/syscalls.c), long before that has begun to run: it only has to
/// stay until the stop is over, and where stops follow each other closely until the next. Nothing of the
/// target is changed for it, as setting its affinity would be.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace memattach::probe {

class CpuOccupants {
  public:
    /// Starts a sleeping thread for each processor that this process may run on. On machines with one
    /// processor, or with more than kMostCpus, and where threads can't be had, there are none and nothing
    /// happens.
    CpuOccupants();
    /// Ends the threads.
    ~CpuOccupants();
    CpuOccupants(const CpuOccupants&) = delete;
    CpuOccupants& operator=(const CpuOccupants&) = delete;

    static constexpr std::size_t kMostCpus = 8;

    /// A stop begins: occupies every processor but `free_cpu` (below zero: none at all).
    void occupy(int free_cpu, std::uint64_t now_ns);
    /// It is over, and began at `start_ns`.
    void leave(std::uint64_t start_ns, std::uint64_t now_ns);

    /// How long they stay after a stop: a sampled allocation's second one follows at once. And after one that
    /// came within the longer time of the one before. No stop is served for longer than the longest.
    static constexpr std::uint64_t kBriefNs = 20'000, kDenseNs = 100'000, kLongestNs = 2'000'000;

  private:
    struct Occupant {
        CpuOccupants* owner = nullptr;
        int cpu = 0;
        pthread_t thread{};
        std::atomic<std::uint32_t> asleep{0};
    };
    static void* run(void* occupant);
    [[nodiscard]] bool is_wanted(const Occupant& occupant) const;

    static constexpr std::uint64_t kEnd = ~std::uint64_t{0};
    std::atomic<std::uint64_t> until_ns_{0};  ///< kEnd: they are to end
    std::atomic<int> free_cpu_{-1};
    std::uint64_t last_ns_ = 0;  ///< when a stop ended
    std::vector<std::unique_ptr<Occupant>> occupants_;
};

}  // namespace memattach::probe
