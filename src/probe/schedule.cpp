#include "memattach/probe/schedule.h"

#include <algorithm>
#include <cmath>

namespace memattach::probe {

namespace {

/// A stop costs half as much again when it is over, in caches that have gone cold: with 5 % of the time spent
/// stopped, loops over small objects, JSON, 1 KB blocks and numpy's temporaries took 6 to 12 % longer.
constexpr double kAftermath = 1.5;
/// The malloc group's part of the budget where both could use all of it; the rest is the object group's.
constexpr double kMallocShare = 0.7;
/// Where the malloc group goes by windows and large blocks are a group of their own, each of the three has so
/// much, and the rest is shared by the bytes that they see: how well a line's bytes are known depends on
/// where they are, and small objects may be next to nothing of it. What leaks is mostly malloc's, be it ever
/// so little of all bytes; and a large block costs no more than a small one.
constexpr double kLeastOfMalloc = 0.25, kLeastOfLarge = 0.25, kLeastOfObjects = 0.12;

/// Each time that something is due the target's processor is kept from it for 15 to 50 µs. A window may begin
/// later, and end with the first hit behind its end: so much is slept at least, and longer where a shadow is
/// waited for.
constexpr std::uint64_t kLeastSleepNs = 100'000, kLeastSleepForCopyNs = 2'000'000;

std::uint64_t wake_ns(const GroupPlan& plan, const GroupSchedule& group, Moment now) {
    const bool copies = group.is_copying() || group.wants_copy();
    return std::max(plan.wake_ns, now.wall_ns + (copies ? kLeastSleepForCopyNs : kLeastSleepNs));
}

}  // namespace

bool ByteSampler::keep(std::uint64_t size_bytes, double sampling_bytes) {
    const double size = static_cast<double>(std::max<std::uint64_t>(size_bytes, 1));
    if (size > 40 * sampling_bytes) return true;
    return std::uniform_real_distribution<double>()(random_) < -std::expm1(-size / sampling_bytes);
}

Schedule::Schedule(const SchedulePolicy& policy, Moment start)
    : max_overhead_(policy.max_overhead / kAftermath),
      clock_(start),
      malloc_({{trace::AllocKind::malloc, trace::AllocKind::mmap}, true, policy.threshold_bytes, policy.seed},
              clock_, kMallocShare * max_overhead_, start),
      object_({{trace::AllocKind::object}, false, policy.threshold_bytes, policy.seed + 1}, clock_,
              (1 - kMallocShare) * max_overhead_, start) {
    if (policy.has_large)
        large_.emplace(
            GroupSchedule::Policy{
                {trace::AllocKind::large}, true, policy.threshold_bytes, policy.seed + 3, true},
            clock_, kLeastOfLarge * max_overhead_, start);
}

/// What a group leaves of its part is the other's.
void Schedule::share_budget(double own_ns) {
    constexpr double kLeastOwnNs = 100e6;  // before that what was spent says little
    if (own_ns < kLeastOwnNs) return;
    const auto used = [&](const GroupSchedule& group) { return group.spent_ns() / own_ns; };
    const double of_large = large_ ? used(*large_) : 0;
    double malloc_share = kMallocShare;
    double object_share = 1 - kMallocShare;
    if (has_large()) {
        const double sum = malloc_.byte_rate() + object_.byte_rate() + large_->byte_rate();
        const auto share = [&](const GroupSchedule& group, double least) {
            const double rest = 1 - kLeastOfMalloc - kLeastOfLarge - kLeastOfObjects;
            return least + rest * (sum > 0 ? group.byte_rate() / sum : 1.0 / 3);
        };
        malloc_share = share(malloc_, kLeastOfMalloc);
        object_share = share(object_, kLeastOfObjects);
        large_->set_budget(std::max(share(*large_, kLeastOfLarge) * max_overhead_,
                                    max_overhead_ - used(malloc_) - used(object_)));
    }
    malloc_.set_budget(std::max(malloc_share * max_overhead_, max_overhead_ - used(object_) - of_large),
                       kMallocShare * max_overhead_);
    object_.set_budget(std::max(object_share * max_overhead_, max_overhead_ - used(malloc_) - of_large));
}

void Schedule::step_large(Moment now, Plan& plan) {
    if (!large_) return;
    const bool pause = !malloc_.is_windowed();
    const double own_ns = clock_.own_ns(now);
    if (pause != large_paused_) {
        large_paused_ = pause;
        if (pause) {
            large_->pause(now);
            paused_since_ = own_ns;
        } else {
            large_->resume(now);
            paused_ns_ += own_ns - paused_since_;
        }
    }
    if (pause) return;
    plan.large = large_->step(now);
    plan.wake_ns = std::min(plan.wake_ns, wake_ns(plan.large, *large_, now));
}

Plan Schedule::step(Moment now) {
    share_budget(clock_.own_ns(now));
    Plan plan;
    // There is one shadow for both.
    if (object_.is_copying()) malloc_.hold_copy();
    plan.malloc = malloc_.step(now);
    if (malloc_.is_copying()) object_.hold_copy();
    plan.object = object_.step(now);
    plan.wake_ns = std::min(wake_ns(plan.malloc, malloc_, now), wake_ns(plan.object, object_, now));
    step_large(now, plan);
    return plan;
}

void Schedule::hit(const Hit& hit) {
    ++hits_;
    GroupSchedule& hit_group = group(hit.kind);
    hit_group.charge(clock_.add_stop(hit.stopped_ns, !hit.sampled));
    hit_group.count_hit(hit.size_bytes);
}

void Schedule::other_stop(trace::AllocKind kind, std::uint64_t stopped_ns) {
    group(kind).charge(clock_.add_stop(stopped_ns, false));
}

void Schedule::work(double ns) {
    clock_.add_work(ns);
    // A group that is armed without a break leaves nothing to do.
    const double share = malloc_.is_windowed() ? 0.5 : 0;
    malloc_.charge(share * ns);
    object_.charge((1 - share) * ns);
}

void Schedule::null_trap(trace::AllocKind kind, std::uint64_t cpu_ns, std::uint64_t wall_ns, bool plain) {
    group(kind).charge(clock_.add_null_trap(cpu_ns, wall_ns, plain));
}

std::vector<trace::Window> Schedule::take_closed() {
    std::vector<trace::Window> closed = malloc_.take_closed();
    const std::vector<trace::Window> more = object_.take_closed();
    closed.insert(closed.end(), more.begin(), more.end());
    if (large_) {
        const std::vector<trace::Window> of_large = large_->take_closed();
        closed.insert(closed.end(), of_large.begin(), of_large.end());
    }
    return closed;
}

void Schedule::finish(Moment now) {
    malloc_.finish(now);
    object_.finish(now);
    if (large_ && !large_paused_) large_->finish(now);
}

Schedule::Figures Schedule::figures(Moment now) const {
    Figures f;
    f.own_ns = clock_.own_ns(now);
    if (f.own_ns > 0) f.overhead = kAftermath * clock_.stopped_ns() / f.own_ns;
    f.stopped_ns = clock_.stopped_ns();
    f.hit_cpu_ns = clock_.stop_cpu_ns();
    f.hit_wall_ns = clock_.stop_wall_ns();
    f.hits = hits_;
    f.null_traps = clock_.null_traps();
    f.malloc = malloc_.figures(now);
    f.object = object_.figures(now);
    if (large_) {
        const double paused = paused_ns_ + (large_paused_ ? f.own_ns - paused_since_ : 0);
        const double armed = large_paused_ ? large_->armed_ns() : large_->figures(now).coverage * f.own_ns;
        f.large_windows = large_->figures(now).windows;
        f.coverage_large = f.own_ns > 0 ? std::clamp((armed + paused) / f.own_ns, 0.0, 1.0) : 1;
    }
    return f;
}

}  // namespace memattach::probe
