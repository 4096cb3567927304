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
    until_ns_.store(kEnd);
    for (const auto& occupant : occupants_) {
        occupant->asleep.store(0);
        occupant->asleep.notify_one();
        pthread_join(occupant->thread, nullptr);
    }
}

bool CpuOccupants::is_wanted(const Occupant& occupant) const {
    return free_cpu_.load(std::memory_order_relaxed) != occupant.cpu &&
           base::monotonic_ns() < until_ns_.load();
}

void CpuOccupants::occupy(int free_cpu, std::uint64_t now_ns) {
    if (occupants_.empty() || free_cpu < 0) return;
    free_cpu_.store(free_cpu, std::memory_order_relaxed);
    until_ns_.store(now_ns + kLongestNs);
    for (const auto& occupant : occupants_) {
        // Set by the occupant before it looks at the time for the last time: no wake-up is lost.
        if (occupant->cpu == free_cpu || occupant->asleep.load() == 0) continue;
        occupant->asleep.store(0);
        occupant->asleep.notify_one();
    }
}

void CpuOccupants::leave(std::uint64_t start_ns, std::uint64_t now_ns) {
    if (occupants_.empty()) return;
    until_ns_.store(now_ns + (start_ns - last_ns_ < kDenseNs ? kDenseNs : kBriefNs));
    last_ns_ = now_ns;
}

void* CpuOccupants::run(void* argument) {
    auto& self = *static_cast<Occupant*>(argument);
    const CpuOccupants& owner = *self.owner;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(static_cast<std::size_t>(self.cpu), &own);
    sched_setaffinity(0, sizeof own, &own);
    const sched_param ordinary{};
    sched_setscheduler(0, SCHED_OTHER, &ordinary);
    setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 19);
    while (true) {
        while (owner.is_wanted(self)) {
            if (owner.until_ns_.load() == kEnd) return nullptr;
            sched_yield();  // whoever is put here all the same goes first
        }
        self.asleep.store(1);
        if (owner.until_ns_.load() == kEnd) return nullptr;
        if (owner.is_wanted(self)) {
            self.asleep.store(0);
        } else {
            self.asleep.wait(1);
        }
    }
}

}  // namespace memattach::probe
