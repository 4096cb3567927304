#include <algorithm>
#include <cmath>

#include "ledger_counted.h"
#include "memattach/profile/ledger.h"
#include "memattach/profile/profile.h"

namespace memattach::profile {
namespace {

/// Seconds to minutes.
constexpr double kPerMinute = 60;

/// Slope, by least squares over [0, T], of what a block adds to live bytes that is there from `birth` to the
/// end, for each of its bytes and minute.
double slope_of_survivor(double birth_s, double duration_s) {
    const double t = duration_s;
    return kPerMinute * 6 * birth_s * (t - birth_s) / (t * t * t);
}

/// The least duration over which a slope says anything.
constexpr double kLeastSlope_s = 1;

}  // namespace

MemoryFigures& MemoryFigures::operator+=(const MemoryFigures& other) {
    alloc += other.alloc;
    live += other.live;
    growth += other.growth;
    count += other.count;
    temporary += other.temporary;
    unconfirmed += other.unconfirmed;
    counted_growth += other.counted_growth;
    late_growth += other.late_growth;
    mistaken += other.mistaken;
    peak += other.peak;
    peak_variance += other.peak_variance;
    slot_ns = other.slot_ns;
    for (std::size_t i = 0; i < TimeSlots::kSlots; ++i) {
        live_in_slot[i] += other.live_in_slot[i];
        born_in_slot[i] += other.born_in_slot[i];
        surviving_of_slot[i] += other.surviving_of_slot[i];
    }
    return *this;
}

/// Of a line that allocates much and keeps nothing some samples look alive all the same. Where that may be
/// all there is to it, its figures aren't known.
void Ledger::add_mistaken(const Account& account, Living& living) const {
    if (!(living.windowed > 0) || !(living.sampled > 0)) return;
    const double factor = std::max(1.0, living.windowed / living.sampled);
    const double most = std::min(living.windowed, kMistaken * account.windowed_alloc * factor);
    living.live.add_known(0, most * most);
    const double growth = living.growth.value() * most / living.live.value();
    living.growth.add_known(0, growth * growth);
}

std::vector<Ledger::Living> Ledger::living(double now_ns, const TimeSlots& slots, double& uncharged) const {
    std::vector<Living> all(accounts_.size());
    const double each = std::ldexp(1.0, static_cast<int>(thinned_));
    const double duration_s = now_ns * 1e-9;
    CountedParts counted(*this, now_ns);
    for (const auto& [key, block] : blocks_) {
        Living& living = all[block.account];
        const double birth = since_start(block.birth_ns);
        if (const auto size_class = counted_class(block)) {
            const double slope =
                duration_s >= kLeastSlope_s ? slope_of_survivor(birth * 1e-9, duration_s) : 0;
            if (birth > now_ns - kYoungNs) continue;
            counted.add(block, *size_class, slope);
            living.surviving[slots.slot_of(birth)] += static_cast<float>(each * block.may_live);
            continue;
        }
        if (!block.is_estimated()) counted.add_known(block);
        living.live.add(block.weight, block.kept, block.kind, block.window);
        if (block.is_estimated()) {
            living.windowed += block.weight;
            living.sampled += block.weight;
        }
        living.surviving[slots.slot_of(birth)] += static_cast<float>(each);
        if (block.unseen) living.unconfirmed += block.weight;
        if (duration_s >= kLeastSlope_s) {
            living.growth.add(block.weight * slope_of_survivor(birth * 1e-9, duration_s), block.kept,
                              block.kind, block.window);
        }
    }
    uncharged = counted.settle([&](std::uint32_t account, CountedParts::Part& part) {
        Living& living = all[account];
        living.live += part.live;
        living.growth += part.growth;
        living.unconfirmed += part.unconfirmed;
        if (part.late_growth) living.counted_growth += part.growth.value();
        living.late_growth += part.late_growth.value_or(0);
        if (part.late_growth && part.lives) living.mistaken += part.mistaken;
        living.counted = true;
        living.windowed += part.live.value();
        living.sampled += part.sampled;
    });
    for (std::size_t i = 0; i < all.size(); ++i) add_mistaken(accounts_[i], all[i]);
    return all;
}

void Ledger::estimate_windowed() {
    std::vector<SampleSum> live(accounts_.size());
    CountedParts counted(*this, now_ns_);
    for (const auto& [key, block] : blocks_) {
        if (!block.is_estimated()) {
            counted.add_known(block);
            continue;
        }
        if (since_start(block.birth_ns) > now_ns_ - kYoungNs) continue;
        if (const auto size_class = counted_class(block)) {
            counted.add(block, *size_class, 0);
        } else {
            live[block.account].add(block.weight, block.kept, block.kind, block.window);
        }
    }
    uncharged_ =
        counted.settle([&](std::uint32_t account, CountedParts::Part& part) { live[account] += part.live; });
    const double elapsed = std::max(1.0, now_ns_ - estimated_ns_);
    estimated_ns_ = now_ns_;
    // All at once as far as the peak is concerned: what falls first, then what rises.
    std::vector<double> changes(accounts_.size());
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        Account& account = accounts_[i];
        const double brief = account.brief_byte_ns / elapsed;
        changes[i] = live[i].value() + brief - account.windowed_live;
        account.brief_byte_ns = 0;
        if (account.windowed_live > 0 || changes[i] > 0) {
            // Those that live briefly are known as well as all that the account allocates.
            const double alloc = account.alloc.value();
            const double relative =
                brief > 0 && alloc > 0 ? account.alloc.uncertainty(times_).variance / (alloc * alloc) : 0;
            account.windowed_variance = live[i].uncertainty(times_).variance + brief * brief * relative;
        }
        if (changes[i] < 0) change(account, 0, changes[i]);
    }
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        if (changes[i] > 0) change(accounts_[i], 0, changes[i]);
    }
}

MemoryFigures Ledger::figures_of(const Account& account, Living&& living, double now_ns,
                                 const TimeSlots& slots, unsigned doublings) const {
    MemoryFigures figures;
    figures.alloc = account.alloc;
    figures.live = std::move(living.live);
    figures.growth = std::move(living.growth);
    figures.count = account.count;
    figures.unconfirmed = living.unconfirmed;
    figures.counted_growth = living.counted_growth;
    figures.late_growth = living.late_growth;
    figures.mistaken = living.mistaken;
    figures.temporary = account.temporary;
    const bool changed_since = account.peak == peak_;
    figures.peak = std::max(0.0, changed_since ? account.at_peak : account.live + account.windowed_live);
    figures.peak_variance =
        changed_since ? account.variance_at_peak : account.live_variance + account.windowed_variance;
    // After thinning the blocks that are left may stand for more than was allocated.
    if (const double alloc = figures.alloc.value(); living.counted && figures.live.value() > alloc) {
        figures.alloc.add_known(figures.live.value() - alloc, 0);
    } else if (figures.live.value() > alloc) {
        const double fit = figures.live.value() > 0 ? alloc / figures.live.value() : 0;
        figures.live.scale(fit);
        figures.unconfirmed *= fit;
    }
    if (const double freed = figures.alloc.value() - figures.live.value();
        figures.temporary.value() > freed) {
        figures.temporary.scale(std::max(0.0, freed) / figures.temporary.value());
    }
    figures.surviving_of_slot = living.surviving;

    const double t = now_ns * 1e-9;
    if (t >= kLeastSlope_s) {
        const double scale = kPerMinute * 12 / (t * t * t);
        const double value = scale * (account.dead_u - t / 2 * account.dead_v);
        const double variance =
            scale * scale * (account.dead_uu - t * account.dead_uv + t * t / 4 * account.dead_vv);
        figures.growth.add_known(value, std::max(0.0, variance));
        figures.growth.add_part(account.windowed_dead_u, scale);
        figures.growth.add_part(account.windowed_dead_v, -scale * t / 2);
    }

    TimeSlots::Values live_ns = account.live_ns;
    figures.born_in_slot = account.born;
    for (unsigned i = 0; i < doublings; ++i) {
        TimeSlots::halve(live_ns);
        TimeSlots::halve(figures.born_in_slot);
    }
    slots.add_time(live_ns, account.changed_ns, now_ns, account.live + account.windowed_live);
    figures.slot_ns = slots.width_ns();
    for (std::size_t i = 0; i < TimeSlots::kSlots; ++i) {
        const double from = slots.width_ns() * static_cast<double>(i);
        const double width = std::min(slots.width_ns(), now_ns - from);
        if (width > 0) figures.live_in_slot[i] = live_ns[i] / static_cast<float>(width);
    }
    return figures;
}

Ledger::Result Ledger::evaluate(std::uint64_t end_ns) const {
    Result result;
    result.duration_ns = std::max(now_ns_, since_start(end_ns));
    TimeSlots slots = slots_;
    const unsigned doublings = slots.doublings_for(result.duration_ns);
    slots.grow(doublings);
    std::vector<Living> all = living(result.duration_ns, slots, result.uncharged_live);
    result.is_counted = std::all_of(accounts_.begin(), accounts_.end(), [&](const Account& account) {
        const auto found = counted_.find(account.pid);
        if (found == counted_.end()) return false;
        const trace::LiveBlocks& counted = found->second.counted;
        return counted.objects && counted.chunks && counted.large;
    });
    double live = 0;
    double peak = 0;
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        result.cells.emplace_back(accounts_[i].cell, figures_of(accounts_[i], std::move(all[i]),
                                                                result.duration_ns, slots, doublings));
        live += result.cells.back().second.live.value();
        peak += result.cells.back().second.peak;
    }
    // The end may be the highest moment yet.
    if (live > peak) {
        for (auto& [cell, figures] : result.cells) {
            figures.peak = figures.live.value();
            figures.peak_variance = figures.live.uncertainty(times_).variance;
        }
    }
    return result;
}

}  // namespace memattach::profile
