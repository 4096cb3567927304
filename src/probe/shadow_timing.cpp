#include "shadow_timing.h"

#include <cmath>
#include <utility>

#include "processor_speed.h"

namespace memattach::probe {
namespace {

/// A processor that has done something else for a while runs the same instructions slower at first, all
/// through the window: three times as slow at first, and even after four runs a program that goes over
/// hundreds of pages gets faster. Whatever else happens on the machine only makes a run slower, single ones
/// by two: the fastest counts. Runs go on until so many in a row have gained nothing.
constexpr int kMostRuns = 8, kRunsWithoutGain = 2;
constexpr double kGain = 1.02, kWarmer = 2;
/// That takes ten runs and more. How much faster the fastest is than the fastest of the first few is much the
/// same from state to state, and told by one in so many: more states in the same time say more than each of
/// them could be timed better.
constexpr int kFewRuns = 2;
constexpr std::uint64_t kThoroughEvery = 8;
constexpr double kFirstThorough = 8, kSoonMemory = 32, kMostGain = 0.25, kMostLoss = 1.1;
/// So often it is tried to go a way without missing a page.
constexpr int kMostTries = 8;
/// A way that is too short is tried again, for longer.
constexpr double kFarther = 1.5, kLongest = 4, kLongestAskedNs = 5e6;
constexpr int kMostLengths = 4;
/// A first run that is so many times slower than they mostly are is rare.
constexpr double kSurely = 2.5;
/// A run may take so many times as long as it is expected to.
constexpr double kPatience = 4;
constexpr std::size_t kManyMarks = 16;
/// Ways with fewer allocations don't say how slow first runs are.
constexpr std::uint64_t kLeastAllocations = 4;
/// Marks in a way: more, and they cost time; fewer, and its end is one that the program's allocations choose.
constexpr double kWantedMarks = 64;
/// A state's first run begins with nothing in the processor's caches, and waits for pages: it takes several
/// times as long as the fastest.
constexpr double kMostSlowness = 12, kSlownessMemory = 16;
constexpr double kRateMemory = 16;
/// What a stub is taken to add to an allocation, among other instructions that don't wait for it (one that
/// counts adds 1.2 ns on one machine, 6 on another; those of timed runs only mark), and what a mark does.
constexpr double kStubNs = 1.2, kMarkNs = 12;

}  // namespace

void ShadowTiming::begin_state(std::uint64_t time_ns) {
    before_late_ = 0;
    thorough_ = states_++ % kThoroughEvery == 0 || soon_.count < kFirstThorough;
    space_->begin_state(time_ns);
}

void ShadowTiming::note_slowness() {
    slowness_before_ = std::exchange(slowness_behind_, log_slowness());
}

bool ShadowTiming::restore() {
    counters_.hits.fill(0);
    counters_.countdown = {ShadowCounters::kNever, ShadowCounters::kNever};
    counters_.mark_every = mark_every_;
    counters_.last_mark = ShadowCounters::kMarks;
    const std::size_t bytes = std::min<std::size_t>(shared_.state_bytes, ShadowShared::kStateBytes);
    pages_.restore();
    return bytes != 0 && space_->set_state(shared_.registers, std::span(shared_.extended_state).first(bytes));
}

bool ShadowTiming::restore_for_sampling() {
    if (!space_->use(Stubs::counting) || !restore()) return false;
    pages_.restore_all();  // behind it: it goes farther than those before
    counters_.until_mark = ShadowCounters::kNever;
    return true;
}

bool ShadowTiming::bring(std::uint64_t page) {
    const bool was_late = pages_.late() > 0;
    const bool is_there = pages_.bring(*space_, page);
    if (!was_late && pages_.late() > 0)
        before_late_ = mark_every_ * std::min<std::uint64_t>(counters_.marked, ShadowCounters::kMarks);
    return is_there;
}

/// Runs the state that was submitted for so much of its own time, or a little more, or up to a mark.
ShadowSpace::Run ShadowTiming::go(double own_ns, std::size_t marks, const std::function<void()>& at_end) {
    if (!restore()) return {};
    if (marks > 0) counters_.last_mark = marks;
    return space_->run(
        static_cast<std::uint64_t>(own_ns), [this](std::uint64_t page) { return bring(page); }, at_end);
}

Timed ShadowTiming::timed_run(double length_ns, std::size_t marks, const std::function<void()>& at_end) {
    Timed timed;
    const std::size_t missed_before = pages_.missed_data() + pages_.missed_constants();
    timed.run = go(length_ns * std::exp(slowness_behind_ - usual_slowness_), marks, at_end);
    note_slowness();
    timed.missed = pages_.missed_data() + pages_.missed_constants() - missed_before;
    const std::size_t marked = timed.run.marks_ns.size();
    const std::uint64_t since = mark_every_ - std::min(counters_.until_mark, mark_every_);
    timed.all_allocations = static_cast<double>(marked * mark_every_ + since);
    const bool is_full = marked == (marks > 0 ? marks : ShadowCounters::kMarks);
    timed.is_cut = timed.run.end != ShadowSpace::End::limit && !is_full;
    // What counting took is spread over all of it.
    const double counting_ns = kStubNs * timed.all_allocations + kMarkNs * static_cast<double>(marked);
    const double own_share = (1 - std::min(counting_ns / std::max(timed.run.own_ns, 1.0), 0.5)) *
                             std::exp(usual_slowness_ - (slowness_before_ + slowness_behind_) / 2);
    for (double& ns : timed.run.marks_ns) ns *= own_share;
    const bool ends_at_mark = is_full && timed.run.end == ShadowSpace::End::stopped;
    timed.own_ns = ends_at_mark ? timed.run.marks_ns.back() : own_share * timed.run.own_ns;
    return timed;
}

/// Goes a way once more, up to a mark, or to where it is cut, and counts what it meets.
bool ShadowTiming::count(Way& way, double length_ns, std::size_t marks) {
    if (!space_->use(Stubs::counting)) return false;
    Timed counted = timed_run(kPatience * length_ns, marks);
    if (!space_->use(Stubs::marking)) return false;
    counted.hits = {sampler_.hits(0), sampler_.hits(1)};
    counted.allocations = {sampler_.hits(0, true), sampler_.hits(1, true)};
    way.is_gone = counted.run.end == ShadowSpace::End::gone;
    const bool arrives = counted.is_clean() &&
                         (marks > 0 ? counted.run.marks_ns.size() == marks
                                    : counted.is_cut && counted.all_allocations == way.full.all_allocations);
    if (arrives) way.full = counted;
    return arrives && !way.is_gone;
}

Way ShadowTiming::find_way(double length_ns, double factor, const std::function<void()>& at_end) {
    Way way;
    if (!space_->use(Stubs::marking)) return way;
    note_slowness();
    if (states_ == 1) usual_slowness_ = slowness_behind_;
    const double every = std::floor(per_ns_.value * length_ns / kWantedMarks);
    set_marks(static_cast<std::uint64_t>(std::clamp(every, 1.0, 1e6)));
    const double slowness = std::max(slowness_.value, 1.0);
    double asked_ns = slowness * length_ns / factor;
    for (int i = 0, lengths = 0; i < kMostTries && lengths < kMostLengths; ++i) {
        const Timed first = timed_run(asked_ns, 0, i == 0 ? at_end : nullptr);
        if (i == 0) {
            first_marks_ns_ = first.run.marks_ns;
            way.missed = first.missed;
        }
        way.full = first;
        way.marks_ns.clear();
        way.mark_every = mark_every_;
        way.is_gone = first.run.end == ShadowSpace::End::gone;
        if (way.is_gone) return way;
        if (!first.run.has_begun) continue;
        pages_.see_changes();
        if (first.is_cut) {
            if (!first.is_clean()) continue;
            const auto same = fastest(first, 0, asked_ns, thorough_);
            if (!same) continue;
            way.full = *same;
            way.is_gone = same->run.end == ShadowSpace::End::gone;
            if (way.is_gone) return way;
            way.own_ns = factor * warm_ns(same->own_ns);
            way.marks_ns = same->run.marks_ns;
            way.is_whole = way.own_ns >= length_ns && cut_at(way, length_ns, factor);
            way.is_known = way.is_whole || count(way, asked_ns, 0);
            return way;
        }
        const std::size_t marks = first.run.marks_ns.size();
        if (marks < kManyMarks && mark_every_ > 1) {
            set_marks(std::max<std::uint64_t>(mark_every_ / kManyMarks, 1));
            continue;
        }
        if (marks > 0) {
            const auto soon = fastest(first, marks, asked_ns, false);
            if (!soon) continue;
            way.full = *soon;
            way.is_gone = soon->run.end == ShadowSpace::End::gone;
            if (way.is_gone) return way;
            way.marks_ns = soon->run.marks_ns;
        }
        // From its last mark on it went on with hardly an allocation, how fast isn't known.
        const double last_ns = marks > 0 ? first.run.marks_ns.back() : 0;
        const double behind_ns =
            first.is_clean()
                ? std::max(std::min(first.own_ns, asked_ns) - last_ns, 0.0) / (kSurely * slowness)
                : 0;
        const double timed_ns = marks > 0 ? warm_ns(way.marks_ns.back()) : 0;
        way.own_ns = factor * (timed_ns + behind_ns);
        if (way.own_ns >= length_ns && end_at(way, length_ns, behind_ns, factor)) return way;
        if (way.is_gone) return way;
        const double farther = std::clamp(length_ns / std::max(way.own_ns, 1.0), kFarther, kLongest);
        if (marks == ShadowCounters::kMarks)
            set_marks(mark_every_ * static_cast<std::uint64_t>(std::ceil(farther)));
        if (first.is_clean()) ++lengths;
        asked_ns = std::min(kLongestAskedNs, asked_ns * (first.is_clean() ? farther : kFarther));
    }
    // One that ends with an allocation, not somewhere, tells nothing where that is one of a few.
    if (way.marks_ns.size() >= kManyMarks)
        end_with_mark(way, way.marks_ns.size(), way.marks_ns.back(), factor);
    return way;
}

/// Up to the next allocation there would have been some more time without one.
void ShadowTiming::end_with_mark(Way& way, std::size_t marks, double length_ns, double factor) {
    set_marks(way.mark_every);
    const auto best = fastest({}, marks, length_ns, thorough_);
    if (!best) return;
    way.full = *best;
    way.is_gone = best->run.end == ShadowSpace::End::gone;
    if (way.is_gone) return;
    way.marks_ns = best->run.marks_ns;
    const double allocations = std::max(best->all_allocations, 1.0);
    way.own_ns = factor * warm_ns(best->own_ns) * (allocations + 1) / allocations;
    way.is_known = count(way, length_ns, marks);
}

std::size_t ShadowTiming::marks_until(const Way& way, double length_ns, double factor) const {
    const auto behind = std::find_if(way.marks_ns.begin(), way.marks_ns.end(),
                                     [&](double ns) { return factor * warm_ns(ns) > length_ns; });
    return static_cast<std::size_t>(behind - way.marks_ns.begin());
}

/// Times it as well as can be. Where it ends has nothing to do with where it allocates. `behind_ns`: of the
/// shadow's time that it has gone without an allocation behind its last mark. False where that isn't enough
/// after all.
bool ShadowTiming::end_at(Way& way, double length_ns, double behind_ns, double factor) {
    // With caches as warm as they get some more are within it.
    const std::size_t all = way.marks_ns.size();
    std::size_t most = all;
    if (thorough_ && all > 0) {
        most = std::min(marks_until(way, kWarmer * length_ns, factor) + 1, all);
        const auto best = fastest({}, most, std::max(length_ns / factor, way.marks_ns[most - 1]), true);
        if (!best) return false;
        way.full = *best;
        way.is_gone = best->run.end == ShadowSpace::End::gone;
        if (way.is_gone) return false;
        // The first few runs, as they were, are those that other states have alone.
        const double few_ns = way.marks_ns[most - 1] / soon_.value;
        soon_.add(std::clamp(best->run.marks_ns.back() / few_ns, kMostGain, kMostLoss), kSoonMemory);
        way.marks_ns = best->run.marks_ns;
    }
    learn(way.full);
    const double last_ns = most > 0 ? warm_ns(way.marks_ns.back()) : 0;
    way.own_ns = factor * (last_ns + (most == all ? behind_ns : 0));
    if (way.own_ns < length_ns || !cut_at(way, length_ns, factor)) return false;
    way.is_whole = way.is_known = true;
    return true;
}

/// It is at least so long: what of it lies within.
bool ShadowTiming::cut_at(Way& way, double length_ns, double factor) {
    const std::size_t marks = marks_until(way, length_ns, factor);
    if (marks == 0) {
        way.full.hits = way.full.allocations = {};
        way.own_ns = length_ns;
        return true;
    }
    if (!count(way, way.marks_ns[marks - 1], marks)) return false;
    // Behind the last mark there have been half as many allocations as up to the next, on average.
    const double allocations = way.full.all_allocations;
    way.own_ns = length_ns * allocations / (allocations + static_cast<double>(mark_every_ - 1) / 2);
    return true;
}

void ShadowTiming::learn(const Timed& fastest) {
    const std::vector<double>& marks_ns = fastest.run.marks_ns;
    const std::size_t common = std::min(marks_ns.size(), first_marks_ns_.size());
    if (common * mark_every_ >= kLeastAllocations) {
        const double slower = first_marks_ns_[common - 1] / std::max(marks_ns[common - 1], 1.0);
        slowness_.add(std::clamp(slower, 1.0, kMostSlowness), kSlownessMemory);
    }
    per_ns_.add(fastest.all_allocations / std::max(fastest.own_ns, 1.0), kRateMemory);
    cold_.add(marks_ns, static_cast<double>(mark_every_));
}

void ShadowTiming::set_marks(std::uint64_t every) {
    mark_every_ = every;
    first_marks_ns_.clear();
}

Way ShadowTiming::way_before_late(double length_ns, double factor) {
    Way way;
    const auto marks = static_cast<std::size_t>(before_late_ / mark_every_);
    if (before_late_ < kLeastAllocations || marks == 0 || marks > ShadowCounters::kMarks) return way;
    way.mark_every = mark_every_;
    end_with_mark(way, marks, std::max(slowness_.value, 1.0) * length_ns / factor, factor);
    return way;
}

/// The same way again and again, up to a mark, or to where `first` was cut: how fast it can be gone. Nothing
/// where it isn't the same.
std::optional<Timed> ShadowTiming::fastest(const Timed& first, std::size_t marks, double length_ns,
                                           bool thoroughly) {
    constexpr int kMostMisses = 3;
    std::optional<Timed> best;
    for (int i = 0, counted = 0, since = 0, misses = 0; i < kMostRuns && since < kRunsWithoutGain; ++i) {
        const Timed timed = timed_run(kPatience * length_ns, marks);
        if (timed.run.end == ShadowSpace::End::gone) return timed;
        const bool arrives =
            timed.is_clean() && (marks > 0 ? timed.run.marks_ns.size() == marks
                                           : timed.is_cut && timed.all_allocations == first.all_allocations);
        if (!arrives) {
            if (++misses == kMostMisses) break;
            pages_.restore_all();
            continue;
        }
        const bool gains = !best || timed.own_ns * kGain < best->own_ns;
        since = gains ? 0 : since + 1;
        if (!best || timed.own_ns < best->own_ns) best = timed;
        if (++counted == kFewRuns && !thoroughly) break;
    }
    if (best && !thoroughly) {
        best->own_ns *= soon_.value;
        for (double& ns : best->run.marks_ns) ns *= soon_.value;
    }
    return best;
}

std::size_t ShadowTiming::comparable(const Way& way) {
    constexpr double kLeastNs = 20'000, kEnoughNs = 100'000, kMostNs = 200'000;
    const std::vector<double>& marks_ns = way.marks_ns;
    const auto behind =
        std::find_if(marks_ns.begin(), marks_ns.end(), [](double ns) { return ns > kEnoughNs; });
    const auto within = static_cast<std::size_t>(behind - marks_ns.begin());
    if (within > 0 && marks_ns[within - 1] > kLeastNs) return within;
    return behind != marks_ns.end() && *behind < kMostNs ? within + 1 : 0;
}

std::optional<double> ShadowTiming::time_to(const Way& way, std::size_t marks) {
    constexpr int kRuns = 4;
    set_marks(way.mark_every);
    if (!space_->use(Stubs::marking)) return std::nullopt;
    note_slowness();
    std::optional<double> best_ns;
    for (int i = 0; i < kRuns; ++i) {
        const Timed timed = timed_run(kPatience * way.marks_ns[marks - 1], marks);
        if (!timed.is_clean() || timed.run.marks_ns.size() != marks) return std::nullopt;
        // Its second half: what cold caches take would be in both.
        const std::vector<double>& marks_ns = timed.run.marks_ns;
        const double ns = marks_ns[marks - 1] - (marks > 1 ? marks_ns[marks / 2 - 1] : 0);
        best_ns = std::min(best_ns.value_or(ns), ns);
    }
    return best_ns;
}

}  // namespace memattach::probe
