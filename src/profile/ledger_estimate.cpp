#include <algorithm>
#include <cmath>

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
    peak += other.peak;
    peak_variance += other.peak_variance;
    slot_ns = other.slot_ns;
    for (std::size_t i = 0; i < TimeSlots::kSlots; ++i) {
        live_in_slot[i] += other.live_in_slot[i];
        born_in_slot[i] += other.born_in_slot[i];
        surviving_of_slot[i] += other.surviving_of_slot[i];
    }
    lifetimes += other.lifetimes;
    unwatched += other.unwatched;
    all_missed *= other.all_missed;
    return *this;
}

std::vector<Ledger::Estimate> Ledger::estimate(double now_ns, const TimeSlots& slots, int rounds) const {
    std::vector<Estimate> estimates(accounts_.size());
    struct Unwatched {
        const Block* block;
        double closed_ns, age_ns;
        std::size_t table;
    };
    // Blocks that can have ended unseen, by account.
    std::vector<std::vector<Unwatched>> unwatched(accounts_.size());
    const double each = std::ldexp(1.0, static_cast<int>(thinned_));
    const double duration_s = now_ns * 1e-9;
    const auto add = [&](const Block& block, double alive) {
        Estimate& estimate = estimates[block.account];
        const double birth = since_start(block.birth_ns);
        const double live = block.weight * alive;
        estimate.live.add(live, block.kept, block.kind, block.window);
        if (block.window != 0) estimate.windowed_live += live;
        estimate.surviving[slots.slot_of(birth)] += static_cast<float>(each * alive);
        if (duration_s >= kLeastSlope_s) {
            estimate.growth.add(live * slope_of_survivor(birth * 1e-9, duration_s), block.kept, block.kind,
                                block.window);
        }
    };
    for (std::size_t i = 0; i < accounts_.size(); ++i) estimates[i].lifetimes = accounts_[i].lifetimes;
    for (const auto& [key, block] : blocks_) {
        const double birth = since_start(block.birth_ns);
        // A block that its window saw until the session's last moment, and no longer, may be a temporary in
        // flight. It stands for very many: it counts with its line's chance to outlive temporaries.
        const double age =
            std::max(block.window != 0 ? static_cast<double>(kTemporaryNs) : 0, now_ns - birth);
        const std::uint64_t closed_ns = closed_at(block);
        const double closed = closed_ns == 0 ? age : std::max(0.0, since_start(closed_ns) - birth);
        const std::size_t table = block.kind == trace::AllocKind::object ? 1 : 0;
        if (closed < age) {
            unwatched[block.account].push_back({&block, closed, age, table});
        } else {
            estimates[block.account].lifetimes[table].add_watched(age);
            add(block, 1);
        }
    }

    constexpr std::array<trace::AllocKind, 2> kKindOfTable = {trace::AllocKind::malloc,
                                                              trace::AllocKind::object};
    std::array<LifeTable::ByAge, 2> armed{};
    for (std::size_t t = 0; t < 2; ++t) {
        const auto kind = static_cast<std::size_t>(kKindOfTable[t]);
        armed[t] = kinds_[kind].armed.shares(times_[kind].fraction());
    }
    // Survival and time at risk depend on each other: each round gets older ages right.
    std::vector<std::array<LifeTable, 2>> tables(accounts_.size());
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        tables[i] = estimates[i].lifetimes;
        for (const Unwatched& w : unwatched[i]) {
            tables[i][w.table].add_watched(w.closed_ns);
            tables[i][w.table].add_gap(w.closed_ns, w.age_ns);
        }
    }
    std::array<double, 2> youngest{};  ///< hazard of all accounts together
    const auto survival_of = [&](std::size_t account) {
        return std::array<Survival, 2>{Survival(tables[account][0].hazards(armed[0], youngest[0])),
                                       Survival(tables[account][1].hazards(armed[1], youngest[1]))};
    };
    for (int round = 0; round <= rounds; ++round) {
        std::array<LifeTable, 2> sums;
        for (const std::array<LifeTable, 2>& table : tables) {
            for (std::size_t t = 0; t < 2; ++t) sums[t] += table[t];
        }
        for (std::size_t t = 0; t < 2; ++t) youngest[t] = sums[t].hazards(armed[t], 0)[0];
        const bool final = round == rounds;
        for (std::size_t i = 0; i < accounts_.size(); ++i) {
            if (unwatched[i].empty()) continue;
            Estimate& estimate = estimates[i];
            const std::array<Survival, 2> survival = survival_of(i);
            std::array<LifeTable, 2> next = estimate.lifetimes;
            for (const Unwatched& w : unwatched[i]) {
                const Unseen unseen =
                    judge_unseen(survival[w.table], armed[w.table], w.closed_ns, w.age_ns, &next[w.table]);
                if (!final) continue;
                add(*w.block, unseen.alive);
                estimate.unconfirmed += w.block->weight * unseen.alive;
                if (unseen.temporary > 0) {
                    estimate.temporary.add(w.block->weight * unseen.temporary, w.block->kept, w.block->kind,
                                           w.block->window);
                }
                estimate.unwatched += 1;
                estimate.all_missed *= 1 - times_[static_cast<std::size_t>(w.block->kind)].fraction();
            }
            tables[i] = next;
        }
    }
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        Estimate& estimate = estimates[i];
        estimate.lifetimes = tables[i];
        if (unwatched[i].empty()) continue;
        // An end that was seen in a share A of the time stands for 1/A of them, give or take: what is left is
        // known no better than that, nor worse than not at all.
        double weight = 0;
        for (const Unwatched& w : unwatched[i]) weight += w.block->weight;
        const double variance = std::min(accounts_[i].late_variance, weight * weight / 4);
        estimate.live.add_known(0, variance);
        if (duration_s >= kLeastSlope_s) {
            const double slope = kPerMinute / duration_s;  // of a block born in the middle, or so
            estimate.growth.add_known(0, variance * slope * slope);
        }
    }
    return estimates;
}

void Ledger::estimate_windowed() {
    const std::vector<Estimate> estimates = estimate(now_ns_, slots_, 6);
    const double elapsed = std::max(1.0, now_ns_ - estimated_ns_);
    estimated_ns_ = now_ns_;
    // All at once as far as the peak is concerned: what falls first, then what rises.
    std::vector<double> changes(accounts_.size());
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        Account& account = accounts_[i];
        const double brief = account.brief_byte_ns / elapsed;
        changes[i] = estimates[i].windowed_live + brief - account.windowed_live;
        account.brief_byte_ns = 0;
        if (account.windowed_live > 0 || changes[i] > 0) {
            // From all its blocks, those that are watched without a break among them. Those that live briefly
            // are known as well as all that the account allocates.
            const double live =
                std::max(0.0, estimates[i].live.uncertainty(times_).variance - account.live_variance);
            const double alloc = account.alloc.value();
            const double relative =
                brief > 0 && alloc > 0 ? account.alloc.uncertainty(times_).variance / (alloc * alloc) : 0;
            account.windowed_variance = live + brief * brief * relative;
        }
        if (changes[i] < 0) change(account, 0, changes[i]);
    }
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        if (changes[i] > 0) change(accounts_[i], 0, changes[i]);
    }
}

MemoryFigures Ledger::figures_of(const Account& account, Estimate&& estimate, double now_ns,
                                 const TimeSlots& slots, unsigned doublings) const {
    MemoryFigures figures;
    figures.alloc = account.alloc;
    figures.live = std::move(estimate.live);
    figures.growth = std::move(estimate.growth);
    figures.count = account.count;
    figures.unconfirmed = estimate.unconfirmed;
    figures.temporary = account.temporary;
    figures.temporary += estimate.temporary;
    const bool changed_since = account.peak == peak_;
    figures.peak = std::max(0.0, changed_since ? account.at_peak : account.live + account.windowed_live);
    figures.peak_variance =
        changed_since ? account.variance_at_peak : account.live_variance + account.windowed_variance;
    // After thinning the blocks that are left may stand for more than was allocated.
    if (const double alloc = figures.alloc.value(); figures.live.value() > alloc) {
        const double fit = figures.live.value() > 0 ? alloc / figures.live.value() : 0;
        figures.live.scale(fit);
        figures.unconfirmed *= fit;
    }
    if (const double freed = figures.alloc.value() - figures.live.value();
        figures.temporary.value() > freed) {
        figures.temporary.scale(std::max(0.0, freed) / figures.temporary.value());
    }
    figures.unwatched = estimate.unwatched;
    figures.all_missed = estimate.all_missed;
    figures.surviving_of_slot = estimate.surviving;
    figures.lifetimes = estimate.lifetimes[0];
    figures.lifetimes += estimate.lifetimes[1];

    const double t = now_ns * 1e-9;
    if (t >= kLeastSlope_s) {
        const double scale = kPerMinute * 12 / (t * t * t);
        const double value = scale * (account.dead_u - t / 2 * account.dead_v);
        const double variance =
            scale * scale * (account.dead_uu - t * account.dead_uv + t * t / 4 * account.dead_vv);
        figures.growth.add_known(value, std::max(0.0, variance));
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
    std::vector<Estimate> estimates = estimate(result.duration_ns, slots, 20);
    double live = 0;
    double peak = 0;
    for (std::size_t i = 0; i < accounts_.size(); ++i) {
        result.cells.emplace_back(accounts_[i].cell, figures_of(accounts_[i], std::move(estimates[i]),
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
