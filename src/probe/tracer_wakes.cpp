/// When the tracing process wakes up by itself, and what that costs.
#include <signal.h>
#include <time.h>

#include <algorithm>

#include "memattach/base/clock.h"
#include "memattach/probe/tracer.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
/// How long run() waits at most before it looks around. Signals and timers wake it earlier.
constexpr std::uint64_t kHeartbeatNs = 50 * kMs;

}  // namespace

/// A signal that arrives just before waitpid doesn't end it; the timer therefore fires again and again until
/// it is set anew.
void Tracer::plan_wake(std::uint64_t now_ns) {
    constexpr std::uint64_t kSecond = 1'000 * kMs;
    asked_ns_ = client_.due_ns();
    due_ns_ = std::min(asked_ns_, now_ns + (held_leader_ != 0 ? kMs : kHeartbeatNs));
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(due_ns_ / kSecond);
    when.it_value.tv_nsec = static_cast<long>(due_ns_ % kSecond);
    when.it_interval.tv_nsec = kMs;
    timer_settime(timer_, TIMER_ABSTIME, &when, nullptr);
}

/// Called when everything is done that this process woke up for. A wake-up that follows another one is
/// measured, with the way into it and out of it; what comes behind a stop is a part of one.
void Tracer::account_wake(bool was_stop) {
    constexpr double kShare = 1.0 / 64;
    if (was_stop) {
        cpu_before_wake_ns_ = 0;
        work_ns_ += static_cast<double>(base::monotonic_ns() - tail_start_ns_);
        return;
    }
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    const std::uint64_t cpu_ns =
        static_cast<std::uint64_t>(time.tv_sec) * 1'000 * kMs + static_cast<std::uint64_t>(time.tv_nsec);
    if (cpu_before_wake_ns_ != 0) {
        const auto cost_ns = static_cast<double>(cpu_ns - cpu_before_wake_ns_);
        wake_cost_ns_ = wake_cost_ns_ == 0 ? cost_ns : wake_cost_ns_ + kShare * (cost_ns - wake_cost_ns_);
        work_ns_ += cost_ns;
    } else {
        work_ns_ += wake_cost_ns_;
    }
    cpu_before_wake_ns_ = cpu_ns;
}

}  // namespace memattach::probe
