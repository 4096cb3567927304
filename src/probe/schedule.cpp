#include "memattach/probe/schedule.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace memattach::probe {

namespace {

// Before anything was measured: a ptrace stop and back on this kind of machine.
constexpr double kFirstCpuNs = 4'000;
constexpr double kFirstWallNs = 7'000;
constexpr double kFirstStoppedNs = 5'000;
/// Stack walk, return breakpoint and its stop, on top of a plain hit.
constexpr double kSampleExtraNs = 27'000;

constexpr double kMemory = 256;    ///< stops that a cost is averaged over
constexpr double kRateMemory = 8;  ///< windows that a rate is averaged over

constexpr double kShortestSpanNs = 10e6;
constexpr double kLongestSpanNs = 500e6;
constexpr double kShortestWindowNs = 3e3;
/// While rates are unknown a span is so many times its window.
constexpr double kUnknownSpanShare = 8;
/// Hits that a dense window has at least and at most: as many as it takes to see the program progress.
constexpr double kFewestHits = 48;
constexpr double kMostHits = 192;
/// A window that was planned for a sparse stretch and met a dense one ends after so many hits.
constexpr double kSurprise = 1024;
/// A window that was planned for a dense stretch and met a quiet one ends after so much of what was planned.
constexpr double kQuietWindows = 20;
constexpr double kQuietNs = 1e6;
/// What a stop costs a thread besides, in caches gone cold: 200 to 500 ns were measured, the more the longer
/// the code until the next stop.
constexpr double kColdNs = 250;
/// Where stops take more than this share of a window's CPU time, the program's progress is asked.
constexpr double kDense = 0.15;
/// A measure less sure than this is not one.
constexpr double kMostSpread = 0.3;
constexpr double kSure = 0.06;
/// How sure a window's own time is, all windows together: by progress; of others by how much the cost of a
/// stop may be off.
constexpr double kMeasuredSpread = 0.03;
constexpr double kCostOffNs = 700;
/// Marks one that waits for the next that can be measured.
constexpr double kUnmeasured = -1;
constexpr double kGuessedSpread = 1;
constexpr double kUnknownSpread = 3;
constexpr std::size_t kMostWaiting = 8;
/// No program allocates faster for long.
constexpr double kShortestGapNs = 30;
/// A stop costs at most so much more than null traps say.
constexpr double kMostUnderratedNs = 1'500;
/// Between two looks at it.
constexpr double kLookNs = 150e3;
/// A hit that arrives with less CPU time gone by than a stop takes had trapped when the window was armed.
constexpr double kPendingNs = 600;
/// A window that has stopped its target for so long is ended, and counted as cut.
constexpr double kLongestWindowStopNs = 150e6;

/// How much of the budget the malloc group may take when it is armed without a break.
constexpr double kAlwaysShare = 0.8;
/// It comes back from windows when that would take less than this.
constexpr double kReturnShare = 0.4;
constexpr double kReviewOwnNs = 20e6;
/// So much stopping above the budget is let pass before the malloc group goes to windows.
constexpr double kBurstNs = 20e6;

}  // namespace

bool ByteSampler::keep(std::uint64_t size_bytes, double sampling_bytes) {
    const double size = static_cast<double>(std::max<std::uint64_t>(size_bytes, 1));
    if (size > 40 * sampling_bytes) return true;
    return std::uniform_real_distribution<double>()(random_) < -std::expm1(-size / sampling_bytes);
}

Schedule::Schedule(const SchedulePolicy& policy, Moment start)
    : policy_(policy), random_(policy.seed), start_(start), always_wall_ns_(start.wall_ns) {
    plan_span(0);
}

double Schedule::own(Moment now) const {
    const double cpu = now.cpu_ns > start_.cpu_ns ? static_cast<double>(now.cpu_ns - start_.cpu_ns) : 0;
    return std::max(0.0, cpu - burnt_cpu_ns_);
}

double Schedule::stop_cost() const {
    const double wall = null_wall_.count > 0 ? null_wall_.value : kFirstWallNs;
    const double stopped = hit_stopped_.count > 0 ? hit_stopped_.value : kFirstStoppedNs;
    return wall + stopped;
}

double Schedule::null_cpu() const {
    return null_cpu_.count > 0 ? null_cpu_.value : kFirstCpuNs;
}

void Schedule::hit(const Hit& hit) {
    ++hits_;
    if (!hit.sampled) hit_stopped_.add_cost(static_cast<double>(hit.stopped_ns), kMemory);
    other_stop(hit.stopped_ns);
    const double bytes = static_cast<double>(hit.size_bytes);
    if (is_windowed(hit.kind)) {
        ++window_hits_;
        rate(hit.kind).window_hits += 1;
        rate(hit.kind).window_bytes += bytes;
    } else {
        always_hits_ += 1;
        always_bytes_ += bytes;
        if (phase_ == Phase::in_window) always_stopped_ += stop_cost();
    }
}

void Schedule::other_stop(std::uint64_t stopped_ns) {
    // A stop that another process got into isn't charged as what it would have been without.
    constexpr double kMostAverages = 20;
    const double cost =
        std::min(static_cast<double>(stopped_ns) + (null_wall_.count > 0 ? null_wall_.value : kFirstWallNs),
                 kMostAverages * (stop_cost() + kSampleExtraNs));
    stopped_ns_ += cost;
    window_stopped_ += cost;
    // What a window stops for is not the doing of a group that is armed without a break; see hit().
    if (malloc_always_ && phase_ != Phase::in_window) always_stopped_ += cost;
    burnt_cpu_ns_ += null_cpu() + kColdNs;
}

bool Schedule::wants_null_trap() {
    // Dense at first, then one stop in sixteen: half a per cent of the cost's spread after a second.
    const std::uint64_t every = null_traps_ < 64 ? 2 : 16;
    if (++since_null_ < every) return false;
    since_null_ = 0;
    return true;
}

void Schedule::null_trap(std::uint64_t cpu_ns, std::uint64_t wall_ns) {
    ++null_traps_;
    stopped_ns_ += static_cast<double>(wall_ns);
    window_stopped_ += static_cast<double>(wall_ns);
    if (malloc_always_ && phase_ != Phase::in_window) always_stopped_ += static_cast<double>(wall_ns);
    burnt_cpu_ns_ += static_cast<double>(cpu_ns);
    // A stop that was interrupted (another process ran, a page of the tracer's was missing) says nothing
    // about the ordinary ones.
    if (null_cpu_.count >= 16 && static_cast<double>(cpu_ns) > 3 * null_cpu_.value) return;
    null_cpu_.add(static_cast<double>(cpu_ns), kMemory);
    null_wall_.add(static_cast<double>(wall_ns), kMemory);
}

void Schedule::plan_span(double own_now) {
    span_start_ = own_now;
    const double density = std::max(object_.hits.value + (malloc_always_ ? 0 : malloc_.hits.value), 1e-7);
    // What is over budget so far is paid back over the next second of own time, and the reverse.
    const double debt = stopped_ns_ - policy_.max_overhead * own_now;
    double budget = policy_.max_overhead - debt / 1e9;
    if (malloc_always_) budget -= malloc_.hits.value * stop_cost();
    budget = std::clamp(budget, policy_.max_overhead / 50, 2 * policy_.max_overhead);
    const double kept = 0.6;  // R is about the mean size: so many of a window's hits are kept
    const double cost = density * (stop_cost() + kept * kSampleExtraNs);
    double fraction = std::min(1.0, budget / cost);
    // Short spans, unless that leaves a window with too few hits.
    const double wanted = std::min(dense_hits_ / density, kLongestSpanNs);
    span_ns_ = std::clamp(wanted / fraction, kShortestSpanNs, kLongestSpanNs);
    // After quiet windows a busy one may come: grow by steps, fall at once. The span shrinks along, so that
    // no sample of a short window stands for a long time.
    const double length = std::max(fraction * span_ns_, kShortestWindowNs);
    const double allowed = window_ns_ > 0 ? 4 * window_ns_ : kShortestWindowNs;
    if (length > allowed) span_ns_ = std::max(span_ns_ * allowed / length, kUnknownSpanShare * allowed);
    window_ns_ = std::min({length, allowed, span_ns_});
    window_start_ = span_start_ + std::uniform_real_distribution<double>()(random_) * (span_ns_ - window_ns_);
    // Windows may begin late in a span, never before the looks at progress that lead up to them.
    dense_ = window_id_ > 0 && density * (null_cpu() + kColdNs) > kDense;
    looks_ = dense_ ? 0 : 3;
    if (looks_ == 0) window_start_ = std::max(window_start_, span_start_ + 2 * kLookNs);
    phase_ = Phase::before_window;
}

void Schedule::open_window(Moment now) {
    phase_ = Phase::in_window;
    ++window_id_;
    opened_wall_ns_ = now.wall_ns;
    window_stopped_ = 0;
    armed(now);
}

void Schedule::armed(Moment now) {
    if (phase_ != Phase::in_window) return;
    window_opened_ = own(now);
    armed_cpu_ns_ = static_cast<double>(now.cpu_ns);
    window_hits_ = 0;
    fresh_ = true;
    for (Rate* r : {&malloc_, &object_}) r->window_hits = r->window_bytes = 0;
}

double Schedule::window_cpu_ns(Moment now) const {
    return static_cast<double>(now.cpu_ns) - armed_cpu_ns_;
}

double Schedule::window_length(double own_ns) const {
    const double computed = std::max(own_ns - window_opened_, 1.0);
    const bool dense = computed < kMostUnderratedNs / 2 * static_cast<double>(window_hits_);
    return dense && log_ratio_.count > 0 ? computed * std::exp(log_ratio_.value) : computed;
}

/// Where own time can be computed a window is over when it is as long as planned. In a dense one computed
/// time means little until progress has been read: it ends after so many hits, unless the program turned
/// quiet.
bool Schedule::is_over(double own_ns) const {
    if (window_stopped_ > kLongestWindowStopNs) return true;
    const double length = window_length(own_ns);
    if (!dense_) return length >= window_ns_ || static_cast<double>(window_hits_) > kSurprise;
    return static_cast<double>(window_hits_) >= dense_hits_ ||
           length >= kQuietWindows * window_ns_ + kQuietNs;
}

Arrival Schedule::arrive(Moment now) {
    if (phase_ != Phase::in_window) return Arrival::ignore;
    const bool fresh = std::exchange(fresh_, false);
    if (fresh && window_cpu_ns(now) < kPendingNs) return Arrival::ignore;
    return is_over(own(now)) ? Arrival::closing : Arrival::counts;
}

void Schedule::close(Moment now, std::optional<OwnTime> measured) {
    if (phase_ != Phase::in_window) return;
    const double computed = std::max(own(now) - window_opened_, 1.0);
    const double known = window_length(own(now));
    const bool cut = window_stopped_ > kLongestWindowStopNs && known < window_ns_;
    const double hits = static_cast<double>(window_hits_);
    // The loop that was looked at may not be the one that the window met. By how much stops can have been
    // misjudged is known; a measure beyond that is of something else.
    const bool plausible = measured && measured->relative_sd < kMostSpread &&
                           1.2 * measured->own_ns >= computed - kMostUnderratedNs * hits &&
                           measured->own_ns <= 1.1 * computed + kColdNs * hits;
    if (plausible && hits > 0) {
        ++measured_windows_;
        if (measured->own_ns < kMostUnderratedNs / 2 * hits) {
            log_ratio_.add(std::log(measured->own_ns / computed), kRateMemory);
            own_per_hit_.add(measured->own_ns / hits, kRateMemory);
        }
        if (measured->relative_sd < kSure) dense_hits_ = std::max(0.9 * dense_hits_, kFewestHits);
        close_window(now, measured->own_ns, cut, kMeasuredSpread);
        return;
    }
    if (!dense_ || hits == 0) {
        // The window's end lay between the last hit that counted and this moment: it was exactly as long as
        // planned.
        close_window(now, std::min(known, window_ns_), cut);
        return;
    }
    dense_hits_ = std::min(1.25 * dense_hits_, kMostHits);
    if (computed > kMostUnderratedNs / 2 * hits) {  // it wasn't dense: its clock can be trusted
        close_window(now, computed, cut);
        return;
    }
    close_window(now, std::max(computed, kShortestGapNs * hits), cut, kUnmeasured);
}

/// Windows whose time could not be told are like those that could be, hit for hit; where there is none, they
/// say what their clock said, and that it isn't to be trusted.
void Schedule::release_waiting() {
    for (auto& [window, hits] : waiting_) {
        if (own_per_hit_.count > 0) {
            window.own_ns = static_cast<std::uint64_t>(std::max(hits * own_per_hit_.value, 1.0));
            window.own_spread = kGuessedSpread;
        }
        closed_.push_back(window);
    }
    waiting_.clear();
}

void Schedule::close_window(Moment now, double length, bool cut, double spread) {
    phase_ = Phase::after_window;
    if (cut) ++cut_windows_;
    if (dense_) ++dense_windows_;
    length = std::max(length, 1.0);
    dense_ = false;
    const double hits = static_cast<double>(window_hits_);
    const bool guess = spread == kUnmeasured && own_per_hit_.count > 0;
    if (guess) length = hits * own_per_hit_.value;
    if (spread == 0) spread = std::min(kCostOffNs * hits / length, kUnknownSpread);
    span_ns_ = std::max(span_ns_, window_opened_ - span_start_ + length);
    for (const auto kind : {trace::AllocKind::object, trace::AllocKind::malloc, trace::AllocKind::mmap}) {
        if (!is_windowed(kind)) continue;
        trace::Window window;
        window.id = window_id_;
        window.kind = kind;
        window.start_ns = opened_wall_ns_;
        window.end_ns = now.wall_ns;
        window.own_ns = static_cast<std::uint64_t>(length);
        window.span_own_ns = static_cast<std::uint64_t>(span_ns_);
        window.own_spread = guess ? kGuessedSpread : spread;
        if (spread == kUnmeasured && !guess) {
            window.own_spread = kUnknownSpread;
            waiting_.push_back({window, hits});
        } else {
            closed_.push_back(window);
        }
    }
    if (own_per_hit_.count > 0 || waiting_.size() > 3 * kMostWaiting) release_waiting();
    armed_object_ns_ += length;
    object_.hits.add(object_.window_hits / length, kRateMemory);
    object_.bytes.add(object_.window_bytes / length, kRateMemory);
    if (!malloc_always_) {
        armed_malloc_ns_ += length;
        malloc_.hits.add(malloc_.window_hits / length, kRateMemory);
        malloc_.bytes.add(malloc_.window_bytes / length, kRateMemory);
        const double would_cost = malloc_.hits.value * stop_cost();
        if (malloc_.hits.count >= kRateMemory && would_cost < kReturnShare * policy_.max_overhead) {
            malloc_always_ = true;
            always_start_ = reviewed_own_ = own(now);
            always_stopped_ = always_hits_ = always_bytes_ = 0;
            reviewed_stopped_ = reviewed_hits_ = reviewed_bytes_ = 0;
            always_wall_ns_ = now.wall_ns;
        }
    }
}

void Schedule::settle_always(Moment now) {
    const double length = own(now) - always_start_;
    armed_malloc_ns_ += length;
    for (const auto kind : {trace::AllocKind::malloc, trace::AllocKind::mmap}) {
        trace::Window window;
        window.kind = kind;
        window.start_ns = always_wall_ns_;
        window.end_ns = now.wall_ns;
        window.own_ns = window.span_own_ns = static_cast<std::uint64_t>(std::max(length, 0.0));
        closed_.push_back(window);
    }
}

void Schedule::review_malloc(Moment now) {
    const double length = own(now) - reviewed_own_;
    const double stopped = always_stopped_ - reviewed_stopped_;
    const bool over = stopped - kAlwaysShare * policy_.max_overhead * length > kBurstNs;
    if (length >= kReviewOwnNs || over) {
        const double hits = always_hits_ - reviewed_hits_;
        const double bytes = always_bytes_ - reviewed_bytes_;
        const double span = std::max(length, 1.0);
        malloc_.hits.add(hits / span, kRateMemory);
        malloc_.bytes.add(bytes / span, kRateMemory);
        reviewed_own_ += length;
        reviewed_stopped_ = always_stopped_;
        reviewed_hits_ = always_hits_;
        reviewed_bytes_ = always_bytes_;
    }
    const bool steady = malloc_.hits.count >= kRateMemory &&
                        malloc_.hits.value * stop_cost() > kAlwaysShare * policy_.max_overhead;
    if (!over && !steady) return;
    if (phase_ == Phase::in_window) close_window(now, window_length(own(now)), true);
    settle_always(now);
    malloc_always_ = false;
    // What made it go is the best guess of what the next windows meet.
    if (over) malloc_.hits = {kBurstNs / stop_cost() / std::max(length, 1.0), 1};
    plan_span(own(now));
}

Plan Schedule::step(Moment now) {
    const double t = own(now);
    Plan plan;
    if (malloc_always_) review_malloc(now);
    if (phase_ == Phase::in_window) {
        // A dense window is ended by the hit behind its last one, which finds the thread stopped.
        const double length = window_length(t);
        const bool quiet = dense_ ? length >= kQuietWindows * window_ns_ + kQuietNs : length >= window_ns_;
        if (quiet || window_stopped_ > kLongestWindowStopNs) close_window(now, length, length < window_ns_);
    }
    if (phase_ == Phase::after_window && t >= span_start_ + span_ns_) plan_span(t);
    if (phase_ == Phase::before_window) {
        if (looks_ < 3 && t >= window_start_ - (2 - looks_) * kLookNs) {
            plan.look = ++looks_;
            // A look that comes late puts the window off: the stretches between looks must have some length.
            if (looks_ < 3) window_start_ = std::max(window_start_, t + (3 - looks_) * kLookNs);
        }
        if (looks_ >= 3 && t >= window_start_) open_window(now);
    }
    plan.malloc_armed = malloc_always_ || phase_ == Phase::in_window;
    plan.object_armed = phase_ == Phase::in_window;
    plan.window = phase_ == Phase::in_window ? window_id_ : 0;
    // Own time passes no faster than wall time on one CPU; more threads only make step() come late, which
    // moves a window but doesn't make it longer than it says.
    const double next = phase_ == Phase::before_window ? window_start_ - std::max(2 - looks_, 0) * kLookNs
                        : phase_ == Phase::in_window   ? window_opened_ + window_ns_ + (dense_ ? kQuietNs : 0)
                                                       : span_start_ + span_ns_;
    plan.wake_ns = now.wall_ns + static_cast<std::uint64_t>(std::clamp(next - t, 1e3, 20e6));
    return plan;
}

double Schedule::sampling_bytes(trace::AllocKind kind) const {
    const Rate& r = rate(kind);
    const double mean = r.hits.value > 0 ? std::max(r.bytes.value / r.hits.value, 1.0) : 64;
    if (is_windowed(kind)) return std::clamp(mean, 1.0, policy_.threshold_bytes);
    const double base = r.hits.value * stop_cost();
    const double rest = std::max(kAlwaysShare * policy_.max_overhead - base, 0.1 * policy_.max_overhead);
    return std::clamp(r.bytes.value * kSampleExtraNs / (0.5 * rest), std::min(mean, policy_.threshold_bytes),
                      policy_.threshold_bytes);
}

bool Schedule::is_windowed(trace::AllocKind kind) const {
    return kind == trace::AllocKind::object || !malloc_always_;
}

std::vector<trace::Window> Schedule::take_closed() {
    return std::exchange(closed_, {});
}

void Schedule::finish(Moment now) {
    if (phase_ == Phase::in_window) {
        const double length = window_length(own(now));
        span_ns_ = std::max(own(now) - span_start_, 1.0);
        close_window(now, length, false);
    }
    if (malloc_always_) settle_always(now);
    release_waiting();
}

Schedule::Figures Schedule::figures(Moment now) const {
    Figures f;
    f.own_ns = own(now);
    if (f.own_ns > 0) {
        f.overhead = stopped_ns_ / f.own_ns;
        const double malloc_now = malloc_always_ ? f.own_ns - always_start_ : 0;
        f.coverage_malloc = std::min(1.0, (armed_malloc_ns_ + malloc_now) / f.own_ns);
        f.coverage_object = std::min(1.0, armed_object_ns_ / f.own_ns);
    }
    f.stopped_ns = stopped_ns_;
    f.hit_cpu_ns = null_cpu_.value;
    f.hit_wall_ns = null_wall_.value;
    f.hits = hits_;
    f.null_traps = null_traps_;
    f.windows = window_id_;
    f.cut_windows = cut_windows_;
    f.measured_windows = measured_windows_;
    f.dense_windows = dense_windows_;
    return f;
}

}  // namespace memattach::probe
