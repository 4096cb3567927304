#include "memattach/probe/group_schedule.h"

#include <algorithm>
#include <cmath>

namespace memattach::probe {

namespace {

constexpr double kRateMemory = 8;  ///< windows that a rate is averaged over
/// The same for what is decided for longer: a program that rests between requests is as dense as its
/// requests.
constexpr double kLongMemory = 64;
/// Hits of a dense window: so many, but where stops are dear no more than take so long. Hits of one window
/// are much alike: two short windows say more than a long one.
constexpr double kDenseHits = 64, kLeastDenseHits = 12, kDenseStopNs = 800e3;
/// A window that was planned for a sparse stretch and met a dense one ends after so many hits: or before,
/// when its stops may be off by more than all of its time. The first ones of all are a few µs long, and the
/// clock may stand still in them or go backwards: they went on for a thousand stops, within one request. The
/// same where quiet windows, between requests, are all that has been seen so far.
constexpr double kSurprise = 1024;
/// After one of those that are planned by the average (plan_span()) has ended like that, so many aren't.
constexpr std::uint64_t kWindowsWithout = 32;
/// A window that was planned for a dense stretch and met a quiet one ends after so much of what was planned.
constexpr double kQuietWindows = 20;
constexpr double kQuietNs = 1e6;
/// A window that a shadow spends.
constexpr double kCopyNs = 150e3, kShortestCopyNs = 50e3;
/// Where a shadow can't go as far as it was to (a page that takes too long to bring, a system call), what
/// lies behind such places would be seen less often than the rest. So windows are as short as nearly all of
/// them can be in full: with these two some 8 % aren't.
constexpr double kCopyShrinks = 0.5, kCopyGrows = 1.06;
/// Where threads run for microseconds only, one that ran when it was asked to stop sleeps when it does: so
/// many in a row, and the window has failed.
constexpr int kMostMissed = 8;
/// How far off a shadow's own time may be, more than otherwise, where the program is in the kernel for much
/// of its time: what comes out of there has cold caches, and on a virtual machine the hypervisor's part of a
/// page fault may count as the program's own. Of eleven programs (tools/bench/memory/lines.py, on a virtual
/// machine with such page faults) the eight that spend less than 13 % of their time in the kernel came out at
/// 0.8 to 1.4 of the bytes, those that spend 25 to 57 % at 0.6 to 6.3.
constexpr double kKernelSpread = 4;
/// So many shadows in a row that went astray are one that has failed.
constexpr int kMostSpoilt = 8;
/// A thread that has been asked to stop and doesn't for so long is let be.
constexpr std::uint64_t kCopyPatienceNs = 20'000'000;
/// Fewer hits are nothing to speak of, unless the shadow went as far as it was to.
constexpr double kWorthHits = 16;
/// What a stop makes a program slower by that is not so dense, by the caches that it leaves cold; give or
/// take.
constexpr double kColdCachesNs = 500, kColdCachesOffNs = 1'000;
/// Where threads run at a time and nothing tells what they have used since the last tick, a window may have
/// been shorter by so much for each of two.
constexpr double kTickNs = 4e6, kMostLate = 1;
/// Windows that own time per hit is averaged over where single ones can't be trusted.
constexpr double kPooled = 64;
/// A hit that arrives with less CPU time gone by than a stop takes had trapped when the window was armed.
constexpr double kPendingNs = 600;
/// A window that has stopped its target for so long is ended, and counted as cut.
constexpr double kLongestWindowStopNs = 50e6;

/// How much of its budget a group may take when it is armed without a break.
constexpr double kAlwaysShare = 0.8;
/// It comes back from windows when that would take less than this.
constexpr double kReturnShare = 0.4;
constexpr double kReviewOwnNs = 20e6;
/// So much stopping above the budget is let pass before a group goes to windows.
constexpr double kBurstNs = 4e6;

}  // namespace

GroupSchedule::GroupSchedule(Policy policy, const StopClock& clock, double budget, Moment start)
    : policy_(std::move(policy)),
      clock_(clock),
      random_(policy_.seed),
      budget_(budget),
      always_budget_(budget),
      always_(policy_.may_be_always),
      always_wall_ns_(start.wall_ns),
      copy_ns_(kCopyNs),
      work_saved_at_(start) {
    plan_span(start);
}

void GroupSchedule::count_hit(std::uint64_t size_bytes) {
    (always_ ? always_hits_ : window_hits_) += 1;
    (always_ ? always_bytes_ : window_bytes_) += static_cast<double>(size_bytes);
}

void GroupSchedule::charge(double cost_ns) {
    spent_ns_ += cost_ns;
    window_stopped_ += cost_ns;
}

void GroupSchedule::begin_window(Moment now) {
    phase_ = Phase::in_window;
    ++window_id_;
    opened_wall_ns_ = now.wall_ns;
    window_stopped_ = 0;
}

void GroupSchedule::open_window(Moment now) {
    begin_window(now);
    armed(now);
}

void GroupSchedule::armed(Moment now) {
    if (phase_ != Phase::in_window) return;
    window_opened_ = clock_.own_ns(now);
    window_burnt_ = clock_.burnt_ns();
    window_cpu_start_ = now.cpu_ns;
    // What a stop burns is known by the kernel's clock alone, and dense windows are made of stops.
    window_exact_start_ = dense_ ? 0 : now.exact_ns;
    window_stops_start_ = clock_.stops();
    window_hits_ = window_bytes_ = 0;
    fresh_ = true;
    surely_open_until_ns_ = 0;
}

double GroupSchedule::dense_hits() const {
    return std::clamp(kDenseStopNs / clock_.stop_cost_ns(), kLeastDenseHits, kDenseHits);
}

double GroupSchedule::window_cpu_ns(Moment now) const {
    const std::uint64_t from = is_window_exact(now) ? window_exact_start_ : window_cpu_start_;
    const std::uint64_t to = is_window_exact(now) ? now.exact_ns : now.cpu_ns;
    return static_cast<double>(to) - static_cast<double>(from);
}

/// The other group's stops make this one's time as unsure as its own.
double GroupSchedule::stops_in_window() const {
    return static_cast<double>(clock_.stops() - window_stops_start_);
}

/// As the clock has it: below zero where stops were overrated.
double GroupSchedule::clocked_ns(Moment now) const {
    return window_cpu_ns(now) - (clock_.burnt_ns() - window_burnt_);
}

/// Where own time can be computed a window is over when it is as long as planned. A dense one ends after so
/// many hits, unless the program turned quiet.
bool GroupSchedule::has_enough() const {
    return window_stopped_ > kLongestWindowStopNs || (dense_ ? window_hits_ >= dense_hits() : is_surprised());
}

double GroupSchedule::longest_ns() const {
    return dense_ ? kQuietWindows * window_ns_ + kQuietNs : window_ns_;
}

bool GroupSchedule::is_surprised() const {
    const double known = seen_hits_ < dense_hits() ? dense_hits() : kSurprise;
    return window_hits_ > std::clamp(window_ns_ / cost_off_ns(), dense_hits(), known);
}

Arrival GroupSchedule::arrive(Moment now, std::size_t parallel) {
    if (phase_ != Phase::in_window || copy_) return Arrival::ignore;
    const bool fresh = std::exchange(fresh_, false);
    if (fresh && window_cpu_ns(now) < kPendingNs) return Arrival::ignore;
    const double left = longest_ns() - clocked_ns(now);
    if (left <= 0 || has_enough()) return Arrival::closing;
    surely_open_until_ns_ = now.wall_ns + static_cast<std::uint64_t>(
                                              left / static_cast<double>(std::max<std::size_t>(parallel, 1)));
    return Arrival::counts;
}

bool GroupSchedule::surely_counts(std::uint64_t wall_ns) const {
    return phase_ == Phase::in_window && !copy_ && !fresh_ && wall_ns < surely_open_until_ns_ &&
           !has_enough();
}

void GroupSchedule::copy_asked(Moment now) {
    begin_window(now);
}

ShadowWindow GroupSchedule::copy() {
    phase_ = Phase::after_window;
    copy_pending_ = true;
    missed_ = 0;
    copy_span_ns_ = span_ns_ + carried_ns_;
    const double in_kernel = 1 - user_share_;
    return {window_id_,      policy_.kinds.front(),
            window_ns_,      user_share_ * copy_span_ns_,
            opened_wall_ns_, kKernelSpread * in_kernel * in_kernel};
}

void GroupSchedule::copy_missed(Moment now) {
    if (++missed_ < kMostMissed) {
        phase_ = Phase::before_window;
        window_start_ = std::min(clock_.own_ns(now), span_start_ + span_ns_);
        return;
    }
    static_cast<void>(copy());
    copied({});
}

void GroupSchedule::copied(const ShadowResult& result) {
    if (!std::exchange(copy_pending_, false)) return;
    copy_work_.add(result.work_ns, kRateMemory);
    work_saved_ns_ -= result.work_ns;
    complete_.add(result.complete ? 1 : 0, kCopiesToJudge);
    if (result.spoilt && ++spoilt_ < kMostSpoilt) {
        carried_ns_ = copy_span_ns_;
        return;
    }
    spoilt_ = 0;
    worth_.add(result.complete || result.hits >= kWorthHits ? 1 : 0, kCopiesToJudge);
    copy_ns_ = result.complete ? std::min(copy_ns_ * kCopyGrows, kCopyNs)
                               : std::max(copy_ns_ * kCopyShrinks, kShortestCopyNs);
    if (!result.ran) {
        carried_ns_ = copy_span_ns_;
        ++failed_copies_;
        return;
    }
    carried_ns_ = 0;
    failed_copies_ = 0;
    ++copied_windows_;
    copied_own_.add(result.own_ns, kPooled);
    copied_hits_.add(result.hits, kPooled);
    learn_density(result.hits, result.bytes, result.own_ns);
}

void GroupSchedule::close(Moment now) {
    if (phase_ != Phase::in_window) return;
    const double clocked = clocked_ns(now);
    const bool cut = window_stopped_ > kLongestWindowStopNs && clocked < window_ns_;
    // The end of a window that wasn't ended by its hits lay between the last that counted and this moment: it
    // was exactly as long as planned.
    end_by_clock(now, dense_ || is_surprised() ? clocked : std::min(clocked, window_ns_), cut);
}

void GroupSchedule::end_by_clock(Moment now, double clocked, bool cut) {
    phase_ = Phase::after_window;
    if (cut) ++cut_windows_;
    if (dense_) ++dense_windows_;
    dense_ = false;
    if (std::exchange(averages_, false) && window_hits_ >= kSurprise)
        no_average_before_ = window_id_ + kWindowsWithout;
    if (clock_windows_ > 0) clocked -= kColdCachesNs * stops_in_window();
    Closed window;
    window.id = window_id_;
    window.start_wall_ns = opened_wall_ns_;
    window.end_wall_ns = now.wall_ns;
    window.start = window_opened_ - span_start_;
    window.hits = window_hits_;
    window.bytes = window_bytes_;
    window.clocked_ns = clocked;
    window.off_ns = std::max(clock_windows_ > 0 ? kColdCachesOffNs : 0, cost_off_ns()) * stops_in_window();
    if (window_hits_ > 0 && !is_clocked(window)) {
        pooled_own_.add(clocked, kPooled);
        pooled_hits_.add(window_hits_, kPooled);
    }
    Length length = length_of(window);
    if (now.is_late && !is_window_exact(now))
        length.spread =
            std::hypot(length.spread, std::min(kTickNs / std::max(length.own_ns, 1.0), kMostLate));
    span_ns_ = std::max(span_ns_, window.start + length.own_ns);
    window.span_ns = span_ns_ + std::exchange(carried_ns_, 0);
    record(window, length);
    if (policy_.may_be_always && hits_.count >= kRateMemory &&
        std::max(hits_.value, long_density()) * clock_.stop_cost_ns() < kReturnShare * always_budget_) {
        begin_always(now);
    }
}

void GroupSchedule::begin_always(Moment now) {
    always_ = true;
    always_start_ = reviewed_own_ = clock_.own_ns(now);
    always_hits_ = always_bytes_ = reviewed_hits_ = reviewed_bytes_ = 0;
    reviewed_spent_ = spent_ns_;
    always_wall_ns_ = now.wall_ns;
}

void GroupSchedule::resume(Moment now) {
    carried_ns_ = 0;
    if (policy_.may_be_always) {
        begin_always(now);
    } else {
        plan_span(now);
    }
}

void GroupSchedule::learn_density(double hits, double bytes, double own_ns) {
    own_ns = std::max(own_ns, 1.0);
    seen_hits_ += hits;
    armed_ns_ += own_ns;
    hits_.add(hits / own_ns, kRateMemory);
    bytes_.add(bytes / own_ns, kRateMemory);
    long_hits_.add(hits, kLongMemory);
    long_bytes_.add(bytes, kLongMemory);
    long_own_.add(own_ns, kLongMemory);
}

double GroupSchedule::long_density() const {
    return long_own_.value > 0 ? long_hits_.value / long_own_.value : 0;
}

void GroupSchedule::settle_always(Moment now) {
    const double length = std::max(clock_.own_ns(now) - always_start_, 0.0);
    armed_ns_ += length;
    for (const trace::AllocKind kind : policy_.kinds) {
        trace::Window window;
        window.kind = kind;
        window.start_ns = always_wall_ns_;
        window.end_ns = now.wall_ns;
        window.own_ns = window.span_own_ns = static_cast<std::uint64_t>(length);
        closed_.push_back(window);
    }
}

void GroupSchedule::review_always(Moment now) {
    const double own_now = clock_.own_ns(now);
    const double length = own_now - reviewed_own_;
    const double spent = spent_ns_ - reviewed_spent_;
    const bool over = spent - kAlwaysShare * budget_ * length > kBurstNs;
    if (length >= kReviewOwnNs || over) {
        const double span = std::max(length, 1.0);
        hits_.add((always_hits_ - reviewed_hits_) / span, kRateMemory);
        bytes_.add((always_bytes_ - reviewed_bytes_) / span, kRateMemory);
        long_hits_.add(always_hits_ - reviewed_hits_, kLongMemory);
        long_bytes_.add(always_bytes_ - reviewed_bytes_, kLongMemory);
        long_own_.add(span, kLongMemory);
        reviewed_own_ = own_now;
        reviewed_spent_ = spent_ns_;
        reviewed_hits_ = always_hits_;
        reviewed_bytes_ = always_bytes_;
    }
    const bool steady =
        hits_.count >= kRateMemory && hits_.value * clock_.stop_cost_ns() > kAlwaysShare * budget_;
    if (!over && !steady) return;
    settle_always(now);
    always_ = false;
    // What made it go is the best guess of what the next windows meet.
    if (over) hits_ = {kBurstNs / clock_.stop_cost_ns() / std::max(length, 1.0), 1};
    window_ns_ = 0;
    long_hits_ = long_bytes_ = long_own_ = {};  // windows may see less: another group sees to a part of it
    plan_span(now);
}

GroupPlan GroupSchedule::step(Moment now) {
    GroupPlan plan;
    if (always_) review_always(now);
    const double t = clock_.own_ns(now);
    if (!always_) {
        if (phase_ == Phase::in_window && copy_) {
            if (now.wall_ns - opened_wall_ns_ > kCopyPatienceNs) {  // it doesn't stop
                static_cast<void>(copy());
                copied({});
            }
        } else if (phase_ == Phase::in_window) {
            // A dense window is ended by the hit behind its last one, which finds the thread stopped.
            const double length = clocked_ns(now);
            if (length >= longest_ns() || window_stopped_ > kLongestWindowStopNs)
                end_by_clock(now, length, length < window_ns_);
        }
        if (phase_ == Phase::after_window && !copy_pending_ && t >= span_start_ + span_ns_) {
            carried_ns_ += t - (span_start_ + span_ns_);
            if (copy_) copy_cost_.add(window_stopped_, kRateMemory);
            plan_span(now);
        }
        if (phase_ == Phase::before_window && copy_ && !copies_) {  // there turned out to be no shadows
            carried_ns_ += std::max(t - span_start_, 0.0);
            plan_span(now);
        }
        if (phase_ == Phase::before_window) {
            plan.copy = copy_ && copy_ready_ && t >= window_start_;
            if (t >= window_start_ && !copy_) open_window(now);
        }
    }
    const bool open = !always_ && phase_ == Phase::in_window && !copy_;
    plan.armed = always_ || open;
    plan.window = open ? window_id_ : 0;
    // Own time passes no faster than wall time on one CPU; more threads only make step() come late, which
    // moves a window but doesn't make it longer than it says.
    const double next = always_                          ? t + kReviewOwnNs
                        : phase_ == Phase::before_window ? window_start_
                        : phase_ == Phase::in_window ? window_opened_ + window_ns_ + (dense_ ? kQuietNs : 0)
                                                     : span_start_ + span_ns_;
    // Until a thread runs, or the shadow is free, there is nothing to do but to look again.
    const double soonest = copy_ && !always_ ? 500e3 : 1e3;
    plan.wake_ns = now.wall_ns + static_cast<std::uint64_t>(std::clamp(next - t, soonest, 20e6));
    return plan;
}

double GroupSchedule::sampling_bytes() const {
    const double mean = hits_.value > 0 ? std::max(bytes_.value / hits_.value, 1.0) : 64;
    const double least = policy_.keep_most ? mean / 8 : mean;
    if (!always_) return std::clamp(least, 1.0, policy_.threshold_bytes);
    const double base = hits_.value * clock_.stop_cost_ns();
    const double rest = std::max(kAlwaysShare * budget_ - base, 0.1 * budget_);
    return std::clamp(bytes_.value * StopClock::kSampleExtraNs / (0.5 * rest),
                      std::min(least, policy_.threshold_bytes), policy_.threshold_bytes);
}

void GroupSchedule::finish(Moment now) {
    const double own_now = clock_.own_ns(now);
    if (always_) {
        settle_always(now);
    } else if (phase_ == Phase::in_window && !copy_) {
        span_ns_ = std::max(own_now - span_start_, 1.0);
        end_by_clock(now, clocked_ns(now), false);
    }
}

GroupSchedule::Figures GroupSchedule::figures(Moment now) const {
    Figures f;
    const double own_now = clock_.own_ns(now);
    if (own_now > 0) {
        const double present = always_ ? std::max(own_now - always_start_, 0.0) : 0;
        f.coverage = std::min(1.0, (armed_ns_ + present) / own_now);
    }
    f.windows = window_id_;
    f.cut_windows = cut_windows_;
    f.copied_windows = copied_windows_;
    f.dense_windows = dense_windows_;
    return f;
}

}  // namespace memattach::probe
