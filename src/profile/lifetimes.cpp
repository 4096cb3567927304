#include "memattach/profile/lifetimes.h"

#include <algorithm>
#include <cmath>

#include "memattach/profile/profile.h"

namespace memattach::profile {
namespace {

/// Shares below this are taken for it: they are estimates themselves.
constexpr double kLeastShare = 1e-4;

double end_of(std::size_t bin) {
    return bin + 1 < LifeTable::kBins ? LifeTable::start_of(bin + 1) : 1e300;
}

}  // namespace

std::size_t LifeTable::bin_of(double age_ns) {
    if (age_ns < kFirstBinNs) return 0;
    return std::min<std::size_t>(kBins - 1, static_cast<std::size_t>(std::ilogb(age_ns / kFirstBinNs)) + 1);
}

double LifeTable::start_of(std::size_t bin) {
    return bin == 0 ? 0 : std::ldexp(kFirstBinNs, static_cast<int>(bin) - 1);
}

void LifeTable::add(Sums& sums, double from_ns, double to_ns, double share) {
    for (std::size_t bin = bin_of(from_ns); bin < kBins && from_ns < to_ns; ++bin) {
        const double end = std::min(to_ns, end_of(bin));
        sums[bin] += static_cast<float>(share * (end - from_ns));
        from_ns = end;
    }
}

LifeTable& LifeTable::operator+=(const LifeTable& other) {
    for (std::size_t bin = 0; bin < kBins; ++bin) {
        ends_[bin] += other.ends_[bin];
        watched_ns_[bin] += other.watched_ns_[bin];
        gap_ns_[bin] += other.gap_ns_[bin];
    }
    return *this;
}

LifeTable::ByAge LifeTable::hazards(const ByAge& armed, double expected) const {
    // A gamma filter: what is known at one age is what is expected at the next, counting a quarter as much.
    constexpr double kCarried = 0.25;
    double ends = expected > 0 ? 1 : 0;
    double exposure_ns = expected > 0 ? 1 / expected : 0;
    ByAge hazards{};
    for (std::size_t bin = 0; bin < kBins; ++bin) {
        if (bin > 0) {
            ends *= kCarried;
            exposure_ns *= kCarried;
        }
        ends += static_cast<double>(ends_[bin]);
        exposure_ns += static_cast<double>(watched_ns_[bin]) +
                       std::max(armed[bin], kLeastShare) * static_cast<double>(gap_ns_[bin]);
        hazards[bin] = exposure_ns > 0 ? ends / exposure_ns : 0;
    }
    return hazards;
}

Survival::Survival(const LifeTable::ByAge& hazards) : hazards_(hazards) {
    double sum = 0;
    for (std::size_t bin = 0; bin < LifeTable::kBins; ++bin) {
        at_start_[bin] = std::exp(-sum);
        if (bin + 1 < LifeTable::kBins) {
            sum += hazards_[bin] * (LifeTable::start_of(bin + 1) - LifeTable::start_of(bin));
        }
    }
}

double Survival::at(double age_ns) const {
    const std::size_t bin = LifeTable::bin_of(age_ns);
    return at_start_[bin] * std::exp(-hazards_[bin] * (age_ns - LifeTable::start_of(bin)));
}

void ArmedByAge::add(const trace::Window& window) {
    constexpr std::size_t kRecent = 64;
    const auto length = static_cast<double>(window.end_ns - std::min(window.start_ns, window.end_ns));
    const Seen seen{static_cast<double>(window.start_ns) + length / 2, length};
    for (const Seen& before : recent_) {
        const double age = seen.middle_ns - before.middle_ns;
        if (age > 0) watched_[LifeTable::bin_of(age)] += before.length_ns * length;
    }
    recent_.push_back(seen);
    if (recent_.size() > kRecent) {
        add_possible(recent_.front(), seen.middle_ns, possible_);
        recent_.pop_front();
    }
}

/// Births are spread over the window, so that at an age below its length only a part of the blocks has left
/// it.
void ArmedByAge::add_possible(const Seen& window, double until_ns, LifeTable::ByAge& possible) const {
    const double w = window.length_ns;
    if (!(w > 0)) return;
    const double longest = until_ns - window.middle_ns;
    const auto outside = [&](double age) { return age < w ? age * age / (2 * w) : age - w / 2; };
    for (std::size_t bin = 0; bin < LifeTable::kBins && LifeTable::start_of(bin) < longest; ++bin) {
        possible[bin] += w * (outside(std::min(longest, end_of(bin))) - outside(LifeTable::start_of(bin)));
    }
}

LifeTable::ByAge ArmedByAge::shares(double overall) const {
    LifeTable::ByAge possible = possible_;
    for (const Seen& window : recent_) add_possible(window, recent_.back().middle_ns, possible);
    LifeTable::ByAge shares{};
    for (std::size_t bin = 0; bin < LifeTable::kBins; ++bin) {
        shares[bin] = possible[bin] > 0 ? std::min(1.0, watched_[bin] / possible[bin]) : overall;
        // Ages that hardly any window is old enough for.
        if (bin > 0 && possible[bin] < possible[bin - 1] / 4) shares[bin] = overall;
    }
    return shares;
}

Unseen judge_unseen(const Survival& survival, const LifeTable::ByAge& armed, double closed_ns, double age_ns,
                    LifeTable* table) {
    if (table) table->add_watched(std::min(closed_ns, age_ns));
    if (age_ns <= closed_ns) return {};
    // Backwards in age: P(there at this age, and no end seen from there to now), up to a factor.
    const std::size_t first = LifeTable::bin_of(closed_ns);
    const std::size_t last = LifeTable::bin_of(age_ns);
    const double lives = survival.at(age_ns);
    const double temporary_ns = static_cast<double>(kTemporaryNs);
    LifeTable::ByAge there{};
    double later = lives;
    double temporary = 0;
    double at_end = lives;
    for (std::size_t bin = last + 1; bin-- > first;) {
        const double from = std::max(closed_ns, LifeTable::start_of(bin));
        const double to = std::min(age_ns, end_of(bin));
        const double at_start = survival.at(from);
        const double missed = (at_start - at_end) * (1 - armed[bin]);
        there[bin] = later + missed / 2;
        later += missed;
        at_end = at_start;
        if (from < temporary_ns) {
            temporary += missed * std::min(1.0, (temporary_ns - from) / std::max(1.0, to - from));
        }
    }
    if (!(later > 1e-300)) return {0, closed_ns < temporary_ns ? 1.0 : 0.0};
    if (table) {
        for (std::size_t bin = first; bin <= last; ++bin) {
            table->add_gap(std::max(closed_ns, LifeTable::start_of(bin)), std::min(age_ns, end_of(bin)),
                           there[bin] / later);
        }
    }
    return {lives / later, temporary / later};
}

}  // namespace memattach::profile
