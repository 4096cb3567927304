// When a group's next window is, how long, and who spends it.

#include <algorithm>
#include <utility>

#include "memattach/probe/group_schedule.h"

namespace memattach::probe {
namespace {

constexpr double kShortestSpanNs = 10e6;
constexpr double kLongestSpanNs = 500e6;
constexpr double kShortestWindowNs = 3e3;
/// While rates are unknown a span is so many times its window.
constexpr double kUnknownSpanShare = 8;
/// Where stops take more than this share of a window's CPU time, its own time isn't told by the clock alone.
constexpr double kDense = 0.15;
/// The shortest span for a shadow, which is some milliseconds of another processor's work.
constexpr double kCopySpanNs = 4e6;
/// How much of another processor that may take, for each group, as a multiple of its budget: 6 to 19 % in all
/// at 5 %, of four programs. Two and a half times as much slowed down a program that moves much memory
/// (pandas) by another 3 %. What isn't used while the program rests is there for so many windows when it
/// doesn't.
constexpr double kCopyWork = 4.5, kMostSaved = 16;
/// So many that come to nothing, one after the other, and this program can't be copied: windows go by the
/// clock.
constexpr int kMostFailedCopies = 16;
/// For how long a thread is held for a shadow, before that is known.
constexpr double kFirstCopyCostNs = 1e6;
/// Where most shadows can't go even the shortest way (a program that touches other pages all the time, or
/// calls the kernel), windows go by the clock all the same, as long as what a stop may be off by is less than
/// this share of the time between two hits; after so many of them shadows are tried again, and judged after a
/// few.
constexpr double kClockOff = 0.35;
constexpr std::uint64_t kClockWindows = 256;
/// The first ones of all find the pages that a program uses: they are judged after kCopiesToJudge.
constexpr double kLeastComplete = 0.5;
/// The same, however dense, where less than this share of the shadows got as far as some hits: on machines
/// where a page fault takes tens of microseconds the time that a thread may be held is over after a few
/// pages. Which allocations there are is seen as well in the target then. How much time they take isn't: that
/// is known from the shadows that did get somewhere, or not at all.
constexpr double kLeastWorth = 0.4;
/// The same where windows by the clock see more of the time, and what stops may be off by is less than this
/// share of it on average.
constexpr double kAveragedOff = 0.05;

}  // namespace

void GroupSchedule::plan_span(Moment now) {
    const double own_now = clock_.own_ns(now);
    span_start_ = own_now;
    // What is over budget so far is paid back over the next second of own time, and the reverse.
    const double debt = spent_ns_ - budget_ * own_now;
    const double budget = std::clamp(budget_ - debt / 1e9, budget_ / 50, 2 * budget_);
    const double copy_span_ns = plan_copy_span(budget, now);
    const bool clock_sees_more = copies_ && sees_more_by_clock(budget, copy_span_ns);
    const double density = std::max(clock_sees_more ? long_density() : hits_.value, 1e-7);
    const double fraction = std::min(1.0, budget / (density * hit_cost_ns()));
    // Short spans, unless that leaves a window with too few hits.
    const double wanted = std::min(dense_hits() / density, kLongestSpanNs);
    span_ns_ = std::clamp(wanted / fraction, kShortestSpanNs, kLongestSpanNs);
    // After quiet windows a busy one may come: grow by steps, fall at once. The span shrinks along, so that
    // no sample of a short window stands for a long time.
    const double length = std::max(fraction * span_ns_, kShortestWindowNs);
    const double allowed = clock_sees_more ? length : window_ns_ > 0 ? 4 * window_ns_ : kShortestWindowNs;
    if (length > allowed) span_ns_ = std::max(span_ns_ * allowed / length, kUnknownSpanShare * allowed);
    window_ns_ = std::min({length, allowed, span_ns_});
    window_start_ = span_start_ + std::uniform_real_distribution<double>()(random_) * (span_ns_ - window_ns_);
    const double dense = kDense / (clock_.stop_cpu_ns() + StopClock::kColdNs);
    averages_ = clock_sees_more;
    dense_ = window_id_ > 0 && !clock_sees_more && (density > dense || (copies_ && long_density() > dense));
    copy_ = dense_ && copies_ && failed_copies_ < kMostFailedCopies && !prefers_clock();
    if (copy_) {
        span_ns_ = copy_span_ns;
        window_ns_ = copy_ns_;
        window_start_ =
            span_start_ + std::uniform_real_distribution<double>()(random_) * (span_ns_ - window_ns_);
    }
    phase_ = Phase::before_window;
}

/// What a hit costs, those included that are kept: R is about the mean size.
double GroupSchedule::hit_cost_ns() const {
    constexpr double kKept = 0.6;
    return clock_.stop_cost_ns() + kKept * StopClock::kSampleExtraNs;
}

/// How far apart the windows of shadows are.
double GroupSchedule::plan_copy_span(double budget, Moment now) {
    const double share = std::min(1.0, kCopyWork * budget_);
    const Moment before = std::exchange(work_saved_at_, now);
    const auto passed_ns =
        static_cast<double>(std::max(now.wall_ns - before.wall_ns, now.cpu_ns - before.cpu_ns));
    work_saved_ns_ = std::min(work_saved_ns_ + share * passed_ns, kMostSaved * copy_work_.value);
    const double cost = copy_cost_.count > 0 ? copy_cost_.value : kFirstCopyCostNs;
    const double least_ns =
        std::clamp((copy_work_.value - work_saved_ns_) / share, kCopySpanNs, kLongestSpanNs / 4);
    return std::clamp(cost / budget, least_ns, kLongestSpanNs);
}

/// A program that computes for milliseconds between bursts of allocations: a shadow's window, which is a
/// tenth of a millisecond long, meets nothing nearly always. One by the clock that takes in whole bursts may
/// be much longer, and what its stops are off by is little then, however dense the bursts are.
bool GroupSchedule::sees_more_by_clock(double budget, double copy_span_ns) const {
    const double density = long_density();
    // A window that a burst has ended before its time is counted for too much: such bursts aren't for it.
    if (window_id_ < no_average_before_) return false;
    if (long_own_.count < kCopiesToJudge || density * cost_off_ns() > kAveragedOff) return false;
    return budget / (std::max(density, 1e-7) * hit_cost_ns()) > copy_ns_ / copy_span_ns;
}

bool GroupSchedule::prefers_clock() {
    if (clock_windows_ == 0) {
        shadows_fail_ = worth_.count >= kCopiesToJudge && worth_.value < kLeastWorth && !is_clockable();
        const bool cut = complete_.count >= kCopiesToJudge && complete_.value <= kLeastComplete;
        if (!shadows_fail_ && !(cut && is_clockable())) return false;
        complete_ = worth_ = {};
        clock_windows_ = kClockWindows;
    }
    if (!shadows_fail_ && !is_clockable()) return false;
    --clock_windows_;
    return clock_windows_ > 0;
}

/// Whether hits are so far apart that the CPU clock tells how far.
bool GroupSchedule::is_clockable() const {
    return std::max(hits_.value, long_density()) * cost_off_ns() <= kClockOff;
}

}  // namespace memattach::probe
