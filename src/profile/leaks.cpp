#include "memattach/profile/leaks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace memattach::profile {
namespace {

constexpr double kLeastDuration_s = 5;
constexpr std::size_t kMostSuspects = 10;
constexpr double kLeastConfidence = 0.9;
/// The same where a single block is seen to live, of a size that surely grows.
constexpr double kLeastOne = 0.8;
constexpr double kKeepsAll = 0.9;
constexpr double kFewBlocks = 4, kFewAlive = 2, kOneAlive = 0.9;  // some count as parts (Ledger)
/// Where most of a line's growth is of sizes that are counted, these grow on in the last quarter by so much
/// of what they do on average, or it has stopped.
constexpr double kMostly = 0.8, kGoesOn = 0.25;
/// Of fewer blocks all may be born early by chance: one time in twenty not one of eleven is of the last
/// quarter, though they come evenly. Those of one window come together.
constexpr double kTellingBlocks = 11;

/// The inverse of normal_cdf, for 0.5 < p < 1.
double normal_quantile(double p) {
    double low = 0;
    double high = 8;
    for (int i = 0; i < 50; ++i) (normal_cdf((low + high) / 2) < p ? low : high) = (low + high) / 2;
    return p > 0.5 ? low : 0;
}

struct Slope {
    double bytes_per_min = 0;
    double standard_error = 0;  ///< from the scatter around the line, correlated as it is
    std::size_t points = 0;
};

/// Least squares through the slots between two moments (shares of the session).
Slope slope_between(const MemoryFigures& memory, double duration_s, double from, double to) {
    const double slot_s = memory.slot_ns * 1e-9;
    std::vector<double> x;
    std::vector<double> y;
    for (std::size_t i = 0; i < TimeSlots::kSlots; ++i) {
        const double start = slot_s * static_cast<double>(i);
        const double end = std::min(start + slot_s, duration_s);
        if (start < from * duration_s - slot_s / 2 || end > to * duration_s + slot_s / 2) continue;
        if (end - start < slot_s / 2) continue;
        x.push_back((start + end) / 2);
        y.push_back(static_cast<double>(memory.live_in_slot[i]));
    }
    Slope slope;
    slope.points = x.size();
    const double n = static_cast<double>(x.size());
    if (x.size() < 3) return slope;
    double mean_x = 0;
    double mean_y = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        mean_x += x[i] / n;
        mean_y += y[i] / n;
    }
    double xx = 0;
    double xy = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        xx += (x[i] - mean_x) * (x[i] - mean_x);
        xy += (x[i] - mean_x) * (y[i] - mean_y);
    }
    const double b = xy / xx;
    double squares = 0;
    double neighbours = 0;
    double before = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double residual = y[i] - mean_y - b * (x[i] - mean_x);
        squares += residual * residual;
        if (i > 0) neighbours += residual * before;
        before = residual;
    }
    const double correlation = squares > 0 ? std::clamp(neighbours / squares, 0.0, 0.9) : 0;
    slope.bytes_per_min = 60 * b;
    slope.standard_error = 60 * std::sqrt(squares / (n - 2) / xx * (1 + correlation) / (1 - correlation));
    return slope;
}

/// Sampled blocks born between two moments (shares of the session), and how many of them live.
struct Cohort {
    double born = 0, alive = 0;
};
Cohort cohort(const MemoryFigures& memory, double duration_s, double from, double to) {
    Cohort result;
    const double slot_s = memory.slot_ns * 1e-9;
    for (std::size_t i = 0; i < TimeSlots::kSlots; ++i) {
        const double middle = slot_s * (static_cast<double>(i) + 0.5);
        if (middle < from * duration_s || middle >= to * duration_s) continue;
        result.born += static_cast<double>(memory.born_in_slot[i]);
        result.alive += static_cast<double>(memory.surviving_of_slot[i]);
    }
    return result;
}

std::string megabytes(double bytes) {
    return fmt::format("{:+.1f} MB", bytes / 1e6);
}

std::optional<Leak> judge(const LeakCandidate& candidate, const AllWindowTimes& times,
                          const LeakContext& context) {
    const MemoryFigures& memory = *candidate.memory;
    const double t = context.duration_s;
    const double growth = memory.growth.value();
    const SampleSum::Uncertainty uncertainty = memory.growth.uncertainty(times);
    const double growth_ci95 = uncertainty.half_width95();
    if (!(growth > 0)) return std::nullopt;
    // Few windows that stand for very different stretches of time leave open how much it is, and still agree
    // that it is more than nothing.
    double error = growth_ci95 / kZ95;
    if (!(growth > growth_ci95)) {
        const double z = normal_quantile(1 - memory.growth.chance_of_sign());
        if (z < kZ95) return std::nullopt;
        error = growth / z;
    }
    const Cohort old = cohort(memory, t, 0, 0.75);
    const Cohort all = cohort(memory, t, 0, 1.01);
    // What is counted says itself whether it goes on, and whether there is anything.
    const bool is_counted = memory.counted_growth > kMostly * growth;
    if (is_counted && memory.late_growth < kGoesOn * memory.counted_growth) return std::nullopt;
    // That a size grows is certain then, and the only one of it that is seen to live says whose it is, unless
    // it only seems to live.
    const double is_its = all.alive / (all.alive + memory.mistaken);
    const bool is_one = is_counted && all.alive < kFewAlive && is_its > kLeastOne;
    if (all.alive < (is_one ? kOneAlive : kFewAlive) || old.alive < (is_counted ? kOneAlive : kFewAlive) ||
        old.alive < 0.1 * all.alive)
        return std::nullopt;
    const double z_all = error > 0 ? growth / error : 10;
    double z_recent = z_all;
    const double windows = memory.alloc.effective_groups();
    const double most = windows > 0 ? windows : all.born;
    const bool is_telling = !is_counted || std::min(all.born, most) >= kTellingBlocks;
    if (old.born >= kFewBlocks && old.alive >= kKeepsAll * old.born) {
        // It frees nothing, and grows as long as it allocates: blocks are counted, since what windows weigh
        // would hide that.
        if (is_telling && cohort(memory, t, 0.5, 1.01).born < 0.25 * all.born) return std::nullopt;
        if (is_telling && cohort(memory, t, 0.75, 1.01).born < 0.1 * all.born) return std::nullopt;
    } else if (is_counted) {
        // Others of its size may grow in its stead: then it keeps nothing of late.
        if (std::min(all.alive, most) >= kTellingBlocks &&
            cohort(memory, t, 0.75, 1.01).alive < 0.1 * all.alive)
            return std::nullopt;
    } else {
        const Slope recent = slope_between(memory, t, 0.5, 1);
        const Slope last = slope_between(memory, t, 0.75, 1);
        if (recent.points < 3 || !(last.bytes_per_min > 0.25 * recent.bytes_per_min)) return std::nullopt;
        // A half of the session knows its slope with twice the variance of the whole.
        const double recent_error = std::max(recent.standard_error, std::sqrt(2.0) * error);
        z_recent = recent_error > 0 ? recent.bytes_per_min / recent_error : 10;
    }

    const double confidence =
        std::clamp(2 * normal_cdf(std::min(z_all, z_recent)) - 1, 0.0, is_one ? is_its : 1.0);
    const double live = memory.live.value();
    if (confidence < (is_one ? kLeastOne : kLeastConfidence)) return std::nullopt;

    Leak leak;
    leak.path = candidate.path;
    leak.function = candidate.function;
    leak.code = candidate.code;
    leak.line = candidate.line;
    leak.growth_bytes_per_min = growth;
    leak.growth_ci95 = growth_ci95;
    leak.live_bytes = live;
    leak.confidence = confidence;
    const double first_half = static_cast<double>(memory.live_in_slot[std::min(
        TimeSlots::kSlots - 1, static_cast<std::size_t>(t / 2 * 1e9 / memory.slot_ns))]);
    leak.evidence = fmt::format("{:.0f} of {:.0f} sampled blocks from the first {:.0f} s still live; ",
                                old.alive, old.born, 0.75 * t);
    // How much there was when isn't known from the few samples of windows; the counts know.
    leak.evidence +=
        is_counted
            ? fmt::format("by the allocator's own count of its sizes {} a minute, {} in the last quarter",
                          megabytes(memory.counted_growth), megabytes(memory.late_growth))
            : fmt::format("{} in the first half of the session, {} in the second", megabytes(first_half),
                          megabytes(live - first_half));
    if (memory.unconfirmed > 0.005 * live) {
        leak.evidence += fmt::format("; {:.0f} % of it could not be looked at any more at the end",
                                     100 * std::min(1.0, memory.unconfirmed / live));
    }
    if (context.limit_bytes && context.rss_bytes && *context.limit_bytes > *context.rss_bytes) {
        leak.seconds_to_limit = 60 * (*context.limit_bytes - *context.rss_bytes) / growth;
    }
    return leak;
}

}  // namespace

std::vector<Leak> find_leaks(const std::vector<LeakCandidate>& candidates, const AllWindowTimes& times,
                             const LeakContext& context) {
    std::vector<Leak> leaks;
    if (context.duration_s < kLeastDuration_s) return leaks;
    for (const LeakCandidate& candidate : candidates) {
        if (auto leak = judge(candidate, times, context)) leaks.push_back(std::move(*leak));
    }
    std::sort(leaks.begin(), leaks.end(), [](const Leak& a, const Leak& b) {
        if (a.growth_bytes_per_min != b.growth_bytes_per_min) {
            return a.growth_bytes_per_min > b.growth_bytes_per_min;
        }
        return a.path != b.path ? a.path < b.path : a.line < b.line;
    });
    if (leaks.size() > kMostSuspects) leaks.resize(kMostSuspects);
    return leaks;
}

}  // namespace memattach::profile
