#include "memattach/probe/cpu_occupants.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "memattach/base/clock.h"

namespace memattach::probe {

CpuOccupants::CpuOccupants() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    const int count = CPU_COUNT(&allowed);
    if (count < 2 || static_cast<std::size_t>(count) > kMostCpus) return;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the thread that traces
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) continue;
        auto occupant = std::make_unique<Occupant>();
        occupant->owner = this;
        occupant->cpu = cpu;
        if (pthread_create(&occupant->thread, &attributes, run, occupant.get()) != 0) break;
        occupants_.push_back(std::move(occupant));
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
}

CpuOccupants::~CpuOccupants() {
    tell(kEnd);
    for (const auto& occupant : occupants_) pthread_join(occupant->thread, nullptr);
}

void CpuOccupants::tell(std::uint32_t free_cpu) {
    const std::uint32_t order = order_.load(std::memory_order_relaxed);
    if (occupants_.empty() || cpu_of(order) == free_cpu) return;
    order_.store((((order >> kCpuBits) + 1) << kCpuBits) | free_cpu, std::memory_order_release);
    if (free_cpu != kNobody) order_.notify_all();  // those that spin look for themselves
}

void CpuOccupants::occupy(int free_cpu) {
    if (free_cpu >= 0) tell(static_cast<std::uint32_t>(free_cpu));
}

void CpuOccupants::leave() {
    tell(kNobody);
}

void* CpuOccupants::run(void* argument) {
    const auto& self = *static_cast<const Occupant*>(argument);
    std::atomic<std::uint32_t>& order = self.owner->order_;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(static_cast<std::size_t>(self.cpu), &own);
    sched_setaffinity(0, sizeof own, &own);
    const sched_param ordinary{};
    sched_setscheduler(0, SCHED_OTHER, &ordinary);
    setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 19);
    while (true) {
        const std::uint32_t seen = order.load(std::memory_order_acquire);
        if (cpu_of(seen) == kEnd) return nullptr;
        if (cpu_of(seen) != kNobody && cpu_of(seen) != static_cast<std::uint32_t>(self.cpu)) {
            const std::uint64_t until_ns = base::monotonic_ns() + kLongestNs;
            while (order.load(std::memory_order_relaxed) == seen && base::monotonic_ns() < until_ns) {
            }
        }
        order.wait(seen, std::memory_order_acquire);
    }
}

}  // namespace memattach::probe
