#include "shadow_timing.h"

#include <cmath>

namespace memattach::probe {
namespace {

/// A processor that has done something else for a while runs the same instructions slower at first, all
/// through the window: three times as slow at first, and even after four runs a program that goes over
/// hundreds of pages gets faster. Whatever else happens on the machine only makes a run slower, single ones
/// by two: the fastest counts. Runs go on until so many in a row have gained nothing.
constexpr int kMostRuns = 8, kRunsWithoutGain = 2;
constexpr double kGain = 1.02;
/// So often it is tried to go a way without missing a page.
constexpr int kMostTries = 8;
/// A way of less than this is tried again, for longer.
constexpr double kLongEnough = 0.6, kFarther = 1.5, kLongest = 4;
constexpr int kMostLengths = 3;
/// A way is timed by its marks where there are so many allocations.
constexpr double kLeastAllocations = 4;
/// Marks in a way: more, and they cost time; fewer, and its end is one that the program's allocations choose.
constexpr double kMarks = 64;
/// A state's first run begins with nothing in the processor's caches, and waits for pages: it takes several
/// times as long as the fastest.
constexpr double kMostSlowness = 12, kSlownessMemory = 16;
constexpr double kRateMemory = 16;
/// What a stub adds to a hit, among other instructions that don't wait for it, and what a mark does.
constexpr double kStubNs = 1.2, kMarkNs = 12;

}  // namespace

void ShadowTiming::begin_state() {
    before_late_ = 0;
    space_->begin_state();
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
    if (!restore()) return false;
    counters_.until_mark = ShadowCounters::kNever;
    return true;
}

bool ShadowTiming::bring(std::uint64_t page) {
    const bool was_late = pages_.late() > 0;
    const bool is_there = pages_.bring(*space_, page);
    if (!was_late && pages_.late() > 0)
        before_late_ = std::min<std::size_t>(counters_.marked, ShadowCounters::kMarks);
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
    timed.run = go(length_ns, marks, at_end);
    timed.hits = {sampler_.hits(0), sampler_.hits(1)};
    timed.allocations = {sampler_.hits(0, true), sampler_.hits(1, true)};
    timed.missed = pages_.missed_data() + pages_.missed_constants() - missed_before;
    const std::size_t marked = timed.run.marks_ns.size();
    const bool is_full = marked == (marks > 0 ? marks : ShadowCounters::kMarks);
    timed.is_cut = timed.run.end != ShadowSpace::End::limit && !is_full;
    const bool ends_at_mark = is_full && timed.run.end == ShadowSpace::End::stopped;
    timed.own_ns = (ends_at_mark ? timed.run.marks_ns.back() : timed.run.own_ns) -
                   kStubNs * timed.all_hits() - kMarkNs * static_cast<double>(marked);
    return timed;
}

Way ShadowTiming::find_way(double length_ns, const std::function<void()>& at_end) {
    Way way;
    const double every = std::floor(per_ns_.value * length_ns / kMarks);
    mark_every_ = static_cast<std::uint64_t>(std::clamp(every, 1.0, 1e6));
    double asked_ns = length_ns * std::max(slowness_.value, 1.0);
    for (int i = 0, lengths = 0; i < kMostTries; ++i) {
        pages_.restore_all();
        const Timed first = way.full = timed_run(asked_ns, 0, i == 0 ? at_end : nullptr);
        if (first.run.end == ShadowSpace::End::gone) return way;
        if (!first.run.has_begun) continue;
        if (first.is_cut) {
            if (!first.is_clean()) continue;
            if (const auto same = fastest(first, 0, asked_ns)) {
                way.full = *same;
                way.is_known = true;
            }
            return way;
        }
        const std::size_t marks = first.run.marks_ns.size();
        if (static_cast<double>(marks * mark_every_) < kLeastAllocations) {
            asked_ns *= kFarther;
            if (!first.is_clean()) continue;
            // Nothing to time it by, and next to nothing in it.
            way.full.own_ns = length_ns;
            way.is_known = true;
            return way;
        }
        const auto best = fastest(first, marks, asked_ns);
        if (!best) continue;
        way.full = *best;
        way.marks = marks;
        way.is_known = best->run.end != ShadowSpace::End::gone;
        if (!way.is_known) return way;
        learn(*best, first.run.marks_ns.back());
        if (best->own_ns > kLongEnough * length_ns || ++lengths == kMostLengths) return way;
        const double farther = std::clamp(length_ns / std::max(best->own_ns, 1.0), kFarther, kLongest);
        if (marks == ShadowCounters::kMarks) mark_every_ *= static_cast<std::uint64_t>(std::ceil(farther));
        asked_ns *= farther;
    }
    return way;
}

void ShadowTiming::learn(const Timed& fastest, double first_ns) {
    const double own_ns = std::max(fastest.own_ns, 1.0);
    slowness_.add(std::clamp(first_ns / own_ns, 1.0, kMostSlowness), kSlownessMemory);
    per_ns_.add(fastest.all_allocations() / own_ns, kRateMemory);
    const auto& marks_ns = fastest.run.marks_ns;
    const std::size_t half = marks_ns.size() / 2;
    if (half == 0) return;
    cold_.add(marks_ns.back(), static_cast<double>(mark_every_ * marks_ns.size()), marks_ns[half - 1],
              static_cast<double>(mark_every_ * half));
}

Way ShadowTiming::way_before_late(double length_ns) {
    Way way;
    way.marks = before_late_;
    if (static_cast<double>(mark_every_ * before_late_) < kLeastAllocations) return way;
    const auto best = fastest({}, way.marks, length_ns * std::max(slowness_.value, 1.0));
    if (!best || best->run.end == ShadowSpace::End::gone) return way;
    way.full = *best;
    way.full.is_cut = true;
    way.is_known = true;
    return way;
}

/// The same way again and again, up to a mark, or to where `first` was cut: how fast it can be gone. Nothing
/// where it isn't the same.
std::optional<Timed> ShadowTiming::fastest(const Timed& first, std::size_t marks, double length_ns) {
    constexpr double kPatience = 3;
    constexpr int kMostMisses = 3;
    std::optional<Timed> best;
    bool knows_changes = false;
    for (int i = 0, since = 0, misses = 0; i < kMostRuns && since < kRunsWithoutGain; ++i) {
        const Timed timed = timed_run(kPatience * length_ns, marks);
        if (timed.run.end == ShadowSpace::End::gone) return timed;
        const bool arrives =
            timed.is_clean() && (marks > 0 ? timed.run.marks_ns.size() == marks
                                           : timed.is_cut && timed.all_hits() == first.all_hits());
        if (!arrives) {
            if (++misses == kMostMisses) break;
            pages_.restore_all();
            continue;
        }
        if (!knows_changes) {
            // Began perhaps with what another had left, and the next one has been looked through.
            knows_changes = pages_.see_changes();
            continue;
        }
        const bool gains = !best || timed.own_ns * kGain < best->own_ns;
        since = gains ? 0 : since + 1;
        if (!best || timed.own_ns < best->own_ns) best = timed;
    }
    return best;
}

std::optional<double> ShadowTiming::compare(const Way& way) {
    constexpr int kRuns = 4;
    constexpr double kPatience = 8, kLeastNs = 20'000, kEnoughNs = 80'000;
    const auto& before_ns = way.full.run.marks_ns;
    const auto enough =
        std::find_if(before_ns.begin(), before_ns.end(), [&](double ns) { return ns > kEnoughNs; });
    const auto end = enough == before_ns.end() ? before_ns.end() : enough + 1;
    const auto marks = static_cast<std::size_t>(end - before_ns.begin());
    if (marks == 0 || way.marks == 0 || before_ns[marks - 1] < kLeastNs) return std::nullopt;
    double best_ns = 0;
    for (int i = 0; i < kRuns; ++i) {
        const Timed timed = timed_run(kPatience * before_ns[marks - 1], marks);
        if (!timed.is_clean() || timed.run.marks_ns.size() != marks) return std::nullopt;
        if (i == 0) continue;  // with cold caches
        const double ns = timed.run.marks_ns.back();
        best_ns = i == 1 ? ns : std::min(best_ns, ns);
    }
    return best_ns / before_ns[marks - 1];
}

double ShadowTiming::warm_ns(const Way& way) const {
    return way.full.own_ns - std::min(cold_.ns(), std::max(way.full.own_ns, 0.0));
}

}  // namespace memattach::probe
