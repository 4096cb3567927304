#include "memattach/probe/stop_clock.h"

#include <algorithm>

namespace memattach::probe {
namespace {

// Before anything was measured: a ptrace stop and back on a 2-core virtual machine.
constexpr double kFirstCpuNs = 4'000;
constexpr double kFirstWallNs = 7'000;
constexpr double kFirstStoppedNs = 5'000;

constexpr double kMemory = 256;  ///< stops that a cost is averaged over

}  // namespace

double StopClock::own_ns(Moment now) const {
    const double cpu = now.cpu_ns > start_.cpu_ns ? static_cast<double>(now.cpu_ns - start_.cpu_ns) : 0;
    return std::max(0.0, cpu - burnt_cpu_ns_);
}

double StopClock::stop_wall_ns() const {
    return null_wall_.count > 0 ? null_wall_.value : kFirstWallNs;
}

double StopClock::stop_cpu_ns(bool plain) const {
    const RunningMean& mean = plain ? null_cpu_ : null_cpu_kept_;
    const RunningMean& other = plain ? null_cpu_kept_ : null_cpu_;
    return mean.count > 0 ? mean.value : other.count > 0 ? other.value : kFirstCpuNs;
}

double StopClock::stop_cost_ns() const {
    return stop_wall_ns() + (plain_stopped_.count > 0 ? plain_stopped_.value : kFirstStoppedNs);
}

double StopClock::add_stop(std::uint64_t stopped_ns, bool plain) {
    ++stops_;
    if (plain) plain_stopped_.add_cost(static_cast<double>(stopped_ns), kMemory);
    // A stop that another process got into isn't charged as what it would have been without.
    constexpr double kMostAverages = 20;
    const double cost = std::min(static_cast<double>(stopped_ns) + stop_wall_ns(),
                                 kMostAverages * (stop_cost_ns() + kSampleExtraNs));
    stopped_ns_ += cost;
    burnt_cpu_ns_ += stop_cpu_ns(plain) + kColdNs;
    return cost;
}

bool StopClock::wants_null_trap() {
    // Dense at first, then one stop in sixteen: half a per cent of the cost's spread after a second.
    const std::uint64_t every = null_traps_ < 64 ? 2 : 16;
    if (++since_null_ < every) return false;
    since_null_ = 0;
    return true;
}

double StopClock::add_null_trap(std::uint64_t cpu_ns, std::uint64_t wall_ns, bool plain) {
    ++null_traps_;
    const auto cost = static_cast<double>(wall_ns);
    stopped_ns_ += cost;
    burnt_cpu_ns_ += static_cast<double>(cpu_ns);
    // A stop that was interrupted (another process ran, a page of the tracer's was missing) says nothing
    // about the ordinary ones.
    RunningMean& mean = plain ? null_cpu_ : null_cpu_kept_;
    if (mean.count >= 16 && static_cast<double>(cpu_ns) > 3 * mean.value) return cost;
    mean.add(static_cast<double>(cpu_ns), kMemory);
    null_wall_.add(cost, kMemory);
    return cost;
}

}  // namespace memattach::probe
