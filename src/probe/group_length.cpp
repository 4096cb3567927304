// How long a window was.

#include <algorithm>
#include <cmath>

#include "memattach/probe/group_schedule.h"

namespace memattach::probe {
namespace {

/// By how much the cost of a stop may be off, systematically: so much, where it takes 4 µs of the thread's
/// CPU time. Where it takes 12, on virtual machines whose page tables the hypervisor keeps, a real one was
/// seen to take up to 8 more than a null trap: translations are gone, too.
constexpr double kCostOffNs = 400, kPlainStopNs = 4'000;
/// So many hits of shadows tell how far apart hits are, to this.
constexpr double kCopiedHits = 300, kCopiedGapOff = 0.4;
/// Hits of CPython's small objects are 60 to 250 ns apart in programs that do little else.
constexpr double kTypicalGapNs = 120;
/// Where windows go by the clock because shadows are cut short, hits are that far apart at least.
constexpr double kClockGapNs = 300;
/// A program that goes through much memory between two stops has to find all of its pages again, in large
/// strides at 5 µs a stop and more (numpy's temporaries of 1.6 MB came out at 0.7). How much of it a program
/// does isn't known: up to this share of its time.
constexpr double kColdTlbNs = 5'000, kMostColder = 0.15;
/// Own time that is not this many times as long as stops may be off is no measure of its window alone.
constexpr double kTrusted = 3;
constexpr double kUnknownSpread = 3;
/// Own time that is a smaller part of its span than this was lost in what its stops took.
constexpr double kMostPart = 4'000;
/// No program allocates faster for long.
constexpr double kShortestGapNs = 10;

}  // namespace

bool GroupSchedule::is_clocked(const Closed& window) {
    return window.hits == 0 || window.clocked_ns > kTrusted * window.off_ns;
}

/// Where hits are dense one window's own time is less than what its stops may be misjudged by from one to the
/// next. Over many windows that evens out.
GroupSchedule::Length GroupSchedule::length_of(const Closed& window) const {
    if (is_clocked(window)) {
        if (!(window.clocked_ns > 0)) return {window.clocked_ns, 0};
        const double colder = std::min(kColdTlbNs * window.hits / window.clocked_ns, kMostColder);
        const double spread = std::hypot(window.off_ns / window.clocked_ns, colder);
        return {window.clocked_ns, std::min(spread, kUnknownSpread)};
    }
    const auto [gap, spread] = dense_gap(window.off_ns / window.hits);
    return {window.hits * gap, spread};
}

/// ns from one hit to the next, and how far off that may be, relative.
GroupSchedule::Gap GroupSchedule::dense_gap(double off_ns) const {
    if (copied_hits_.value * copied_hits_.count > kCopiedHits)
        return {std::max(copied_own_.value / copied_hits_.value, kShortestGapNs), kCopiedGapOff};
    const double clocked = pooled_own_.value / std::max(pooled_hits_.value, 1.0);
    const double least = clock_windows_ > 0 && !shadows_fail_ ? kClockGapNs : kShortestGapNs;
    if (clocked > (shadows_fail_ ? kTrusted : 1) * off_ns) {
        const double gap = std::max(clocked, least);
        return {gap, std::min(off_ns / gap, kUnknownSpread)};
    }
    // Somewhere between what is usual and what stops may be off by.
    const double gap = std::sqrt(kTypicalGapNs * std::max(clocked, kTypicalGapNs));
    return {std::max(gap, least), kUnknownSpread};
}

/// Of one stop.
double GroupSchedule::cost_off_ns() const {
    return std::max(kCostOffNs, clock_.stop_cpu_ns() - kPlainStopNs);
}

void GroupSchedule::record(const Closed& closed, Length length) {
    length.own_ns = std::max(length.own_ns, std::max(closed.hits, 1.0) * kShortestGapNs);
    const double span_ns = std::max(closed.span_ns, closed.start + length.own_ns);
    const double told_ns = std::max(length.own_ns, span_ns / kMostPart);
    for (const trace::AllocKind kind : policy_.kinds) {
        trace::Window window;
        window.id = closed.id;
        window.kind = kind;
        window.start_ns = closed.start_wall_ns;
        window.end_ns = closed.end_wall_ns;
        window.own_ns = static_cast<std::uint64_t>(told_ns);
        window.span_own_ns = static_cast<std::uint64_t>(span_ns);
        window.own_spread = length.spread;
        closed_.push_back(window);
    }
    learn_density(closed.hits, closed.bytes, length.own_ns);
}

}  // namespace memattach::probe
