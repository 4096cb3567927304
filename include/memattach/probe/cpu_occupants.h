/// Keeps the machine's other processors from looking idle while a window is open.
///
/// A stop costs 4 µs of CPU time and 10 µs in all where tracer and tracee share a processor, and 16 and 46 µs
/// where each wakes the other on another one (measured on a 2-core virtual machine). The tracer can choose
/// its processor; the tracee's is the kernel's choice, and at each wake-up it prefers an idle one
/// (select_idle_sibling() in kernel/sched/fair.c, Linux 2.6.23 to 6.18) to the one that the tracer is running
/// on. So that there is none, a thread of the lowest ordinary priority (SCHED_IDLE would count as idle) spins
/// on each of the others as long as the window is open. Nothing of the target is changed for it, as setting
/// its affinity would be.
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

    /// Occupies every processor but `free_cpu`; spinning ends by itself after kLongestNs.
    void occupy(int free_cpu);
    void leave();

    static constexpr std::uint64_t kLongestNs = 20'000'000;

  private:
    struct Occupant {
        CpuOccupants* owner = nullptr;
        int cpu = 0;
        pthread_t thread{};
    };
    static void* run(void* occupant);

    void tell(std::uint32_t free_cpu);

    static constexpr std::uint32_t kCpuBits = 12;
    static constexpr std::uint32_t kNobody = (1U << kCpuBits) - 1;  ///< all of them sleep
    static constexpr std::uint32_t kEnd = kNobody - 1;
    /// The processor to leave free, or one of these; above it a number that is new with each change.
    std::atomic<std::uint32_t> order_{kNobody};
    static std::uint32_t cpu_of(std::uint32_t order) { return order & kNobody; }
    std::vector<std::unique_ptr<Occupant>> occupants_;
};

}  // namespace memattach::probe
