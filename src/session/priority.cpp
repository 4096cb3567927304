#include "memattach/session/priority.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace memattach::session {
namespace {

/// sched_setattr(2)'s first version; glibc has no wrapper before 2.41.
struct SchedulingAttributes {
    std::uint32_t size = 48;
    std::uint32_t policy = 0;  // SCHED_OTHER
    std::uint64_t flags = 0;
    std::int32_t nice = 0;
    std::uint32_t priority = 0;
    std::uint64_t runtime_ns = 0;  // Linux 6.12: the time slice of an ordinary process, 0 for the default
    std::uint64_t deadline_ns = 0;
    std::uint64_t period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

constexpr std::uint64_t kSliceNs = 200'000;
constexpr int kNice = -15;
int original_nice = 0;
bool process_changed = false;

constexpr std::uint32_t kRoundRobin = 2;   // SCHED_RR
constexpr std::uint64_t kResetOnFork = 1;  // SCHED_FLAG_RESET_ON_FORK

bool set(const SchedulingAttributes& attributes) {
    return ::syscall(SYS_sched_setattr, 0, &attributes, 0) == 0;
}

bool set_ordinary(int nice, std::uint64_t runtime_ns) {
    SchedulingAttributes attributes;
    attributes.nice = nice;
    attributes.runtime_ns = runtime_ns;
    return set(attributes);
}

/// Ahead of all ordinary processes, whatever group they are in (a nice value counts within a group only). The
/// kernel keeps 5 % of the time back for them, should something go wrong here (kernel.sched_rt_runtime_us).
bool set_real_time() {
    SchedulingAttributes attributes;
    attributes.policy = kRoundRobin;
    attributes.flags = kResetOnFork;
    attributes.priority = 1;
    return set(attributes);
}

}  // namespace

SamplingPriority::SamplingPriority(Promptness wanted) {
    // Only an ordinary process is changed; whoever chose another policy for us meant it.
    if (wanted == Promptness::ordinary || ::syscall(SYS_sched_getscheduler, 0) != 0) return;
    original_nice = ::getpriority(PRIO_PROCESS, 0);
    changed_ = process_changed = (wanted == Promptness::real_time && set_real_time()) ||
                                 set_ordinary(original_nice < kNice ? original_nice : kNice, kSliceNs) ||
                                 set_ordinary(original_nice, kSliceNs);
}

SamplingPriority::~SamplingPriority() {
    end();
}

void SamplingPriority::end() {
    if (changed_) give_up();
    changed_ = false;
}

void SamplingPriority::give_up() {
    if (process_changed) set_ordinary(original_nice, 0);
    process_changed = false;
}

}  // namespace memattach::session
