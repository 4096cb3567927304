#include "ledger_counted.h"

#include <algorithm>
#include <cmath>

namespace memattach::profile {
namespace {

/// Fewer counts say nothing of the slope.
constexpr unsigned kFewCounts = 4;
/// Late is what comes behind this share of the session.
constexpr double kLate = 0.75;

/// Two estimates of one number, each as good as its variance says.
struct Estimate {
    double value = 0, variance = 0;
};
Estimate combine(const Estimate& a, const Estimate& b) {
    if (!(a.variance > 0)) return a;
    if (!(b.variance > 0)) return b;
    const double of_a = 1 / a.variance;
    const double of_b = 1 / b.variance;
    return {(a.value * of_a + b.value * of_b) / (of_a + of_b), 1 / (of_a + of_b)};
}

/// Whether there are any at all.
bool is_known(const trace::LiveBlocks& counted, std::size_t size_class) {
    const double blocks = counted.blocks[size_class];
    return blocks * blocks > kZ95 * kZ95 * counted.variance[size_class];
}

}  // namespace

void Ledger::add(const trace::LiveBlocks& blocks) {
    advance(blocks.time_ns);
    Counted& entry = counted_[blocks.pid];
    trace::LiveBlocks& counted = entry.counted;
    const trace::LiveBlocks before = counted;
    counted = blocks;
    // What could be counted once and now can't is as it was: better known than from samples alone.
    const auto keep = [&](std::ptrdiff_t from, std::ptrdiff_t to) {
        std::copy(before.blocks.begin() + from, before.blocks.begin() + to, counted.blocks.begin() + from);
        std::copy(before.bytes.begin() + from, before.bytes.begin() + to, counted.bytes.begin() + from);
        std::copy(before.variance.begin() + from, before.variance.begin() + to,
                  counted.variance.begin() + from);
    };
    constexpr std::ptrdiff_t kObjects = trace::LiveBlocks::kObjectClasses;
    constexpr std::ptrdiff_t kAll = trace::LiveBlocks::kClasses;
    if (!blocks.objects && before.objects) keep(0, kObjects);
    if (!blocks.chunks && before.chunks) keep(kObjects, kAll);
    counted.objects = blocks.objects || before.objects;
    counted.chunks = blocks.chunks || before.chunks;
    counted.large = blocks.chunks ? blocks.large : before.large;
    // From one count to the next in a straight line.
    const double t0 = entry.counted_ns * 1e-9;
    const double t1 = std::max(now_ns_ * 1e-9, t0);
    for (std::size_t i = 0; i < trace::LiveBlocks::kClasses; ++i) {
        const double y0 = before.bytes[i];
        const double y1 = counted.bytes[i];
        entry.area[i] += (t1 - t0) * (y0 + y1) / 2;
        entry.moment[i] += (t1 - t0) * (t0 * (2 * y0 + y1) + t1 * (y0 + 2 * y1)) / 6;
    }
    entry.counted_ns = now_ns_;
    ++entry.counts;
    std::vector<Counted::Earlier>& earlier = entry.earlier;
    const double every_ns = now_ns_ / Counted::kMostEarlier;
    if (earlier.empty() || now_ns_ - earlier.back().at_ns >= every_ns)
        earlier.push_back({now_ns_, counted.bytes});
    if (earlier.size() > Counted::kMostEarlier) {
        for (std::size_t i = 1; 2 * i < earlier.size(); ++i) earlier[i] = earlier[2 * i];
        earlier.resize((earlier.size() + 1) / 2);
    }
}

double Ledger::Counted::slope_since(std::size_t size_class, double from_ns) const {
    const auto behind = std::find_if(earlier.begin(), earlier.end(),
                                     [&](const Earlier& count) { return count.at_ns > from_ns; });
    if (behind == earlier.begin()) return 0;
    const Earlier& from = *std::prev(behind);
    const double time_ns = counted_ns - from.at_ns;
    return time_ns > 0 ? 60e9 * (counted.bytes[size_class] - from.bytes[size_class]) / time_ns : 0;
}

/// By least squares over [0, now], bytes per minute.
double Ledger::Counted::slope(std::size_t size_class, double now_ns) const {
    const double t = now_ns * 1e-9;
    const double rest = std::max(0.0, t - counted_ns * 1e-9) * counted.bytes[size_class];
    const double whole = area[size_class] + rest;
    const double first_moment = moment[size_class] + rest * (t + counted_ns * 1e-9) / 2;
    return 60 * 12 / (t * t * t) * (first_moment - t / 2 * whole);
}

std::optional<std::uint32_t> Ledger::counted_class(const Block& block) const {
    return block.is_estimated() ? class_of(block) : std::nullopt;
}

std::optional<std::uint32_t> Ledger::class_of(const Block& block) const {
    if (block.size == 0) return std::nullopt;
    const auto found = counted_.find(accounts_[block.account].pid);
    if (found == counted_.end()) return std::nullopt;
    const trace::LiveBlocks& counted = found->second.counted;
    if (block.kind == trace::AllocKind::object && counted.objects &&
        block.size <= trace::LiveBlocks::kLargestObject)
        return trace::LiveBlocks::object_class(block.size);
    const bool is_chunk = block.kind == trace::AllocKind::malloc || block.kind == trace::AllocKind::large;
    if (!is_chunk || !counted.chunks) return std::nullopt;
    const std::uint64_t chunk = trace::LiveBlocks::chunk_of(block.size);
    if (chunk > trace::LiveBlocks::kLargestChunk) return std::nullopt;
    if (chunk >= trace::LiveBlocks::kLargestInHeap && !counted.large) return std::nullopt;
    return trace::LiveBlocks::chunk_class(chunk);
}

bool Ledger::end_counted(const Block& block, double weight, double age_ns) {
    const auto size_class = counted_class(block);
    if (!size_class) return false;
    Account& account = accounts_[block.account];
    auto brief = std::find_if(account.brief.begin(), account.brief.end(),
                              [&](const Brief& b) { return b.size_class == *size_class; });
    if (brief == account.brief.end()) brief = account.brief.insert(brief, Brief{*size_class, 0, 0});
    const double blocks = weight / static_cast<double>(block.size);
    brief->block_ns += blocks * age_ns;
    brief->byte_ns += weight * age_ns;
    counted_.at(account.pid).brief.at(*size_class).add(blocks * age_ns, 1, block.kind, block.window);
    return true;
}

void Ledger::CountedParts::add(const Block& block, std::uint32_t size_class, double slope) {
    Part& part = parts_[key_of(block.account, size_class)];
    const auto size = static_cast<double>(block.size);
    const double weight = block.weight * block.may_live;
    part.blocks.add(weight / size, block.kept, block.kind, block.window);
    part.live.add(weight, block.kept, block.kind, block.window);
    part.growth.add(weight * slope, block.kept, block.kind, block.window);
    if (block.unseen) part.unconfirmed += weight;
    part.lives = true;
}

/// One whose end would have been seen: it is among those that were counted, and nobody else's.
void Ledger::CountedParts::add_known(const Block& block) {
    const auto size_class = ledger_.class_of(block);
    if (!size_class) return;
    Seen& seen = seen_[{ledger_.accounts_[block.account].pid, *size_class}];
    const double blocks = block.weight / static_cast<double>(block.size);
    seen.blocks += blocks;
    seen.bytes += block.weight;
    seen.variance += blocks * blocks * (1 - block.kept);
}

/// At any moment there are as many brief ones as there were on average.
void Ledger::CountedParts::add_brief() {
    for (std::uint32_t i = 0; i < ledger_.accounts_.size(); ++i) {
        const Account& account = ledger_.accounts_[i];
        for (const Brief& brief : account.brief) {
            const SampleSum& all = ledger_.counted_.at(account.pid).brief.at(brief.size_class);
            if (!(all.value() > 0) || !(now_ns_ > 0)) continue;
            Part& part = parts_[key_of(i, brief.size_class)];
            part.blocks.add_part(all, brief.block_ns / all.value() / now_ns_);
            part.live.add_part(all, brief.byte_ns / all.value() / now_ns_);
        }
    }
}

double Ledger::CountedParts::settle(const std::function<void(std::uint32_t account, Part& part)>& take) {
    add_brief();
    struct Whole {
        SampleSum blocks, live, growth;
        bool lives = false;
    };
    std::map<std::pair<std::int32_t, std::uint32_t>, Whole> wholes;
    constexpr std::uint32_t kClasses = trace::LiveBlocks::kClasses;
    for (const auto& [key, part] : parts_) {
        const std::int32_t pid = ledger_.accounts_[static_cast<std::uint32_t>(key / kClasses)].pid;
        Whole& whole = wholes[{pid, static_cast<std::uint32_t>(key % kClasses)}];
        whole.blocks += part.blocks;
        whole.live += part.live;
        whole.growth += part.growth;
        whole.lives = whole.lives || part.lives;
    }
    std::map<std::int32_t, trace::LiveBlocks> rest;
    for (const auto& [pid, count] : ledger_.counted_) rest.emplace(pid, count.counted);
    for (const auto& [of, seen] : seen_) {
        trace::LiveBlocks& of_pid = rest.at(of.first);
        of_pid.blocks[of.second] = std::max(0.0, of_pid.blocks[of.second] - seen.blocks);
        of_pid.bytes[of.second] = std::max(0.0, of_pid.bytes[of.second] - seen.bytes);
        of_pid.variance[of.second] += seen.variance;
    }
    double uncharged = 0;
    for (const auto& [pid, counted] : rest)
        for (std::uint32_t i = 0; i < kClasses; ++i)
            if (!wholes.contains({pid, i}) && is_known(counted, i)) uncharged += counted.bytes[i];
    struct Known {
        double factor = 1, growth_factor = 1, relative_variance = 0;
        double slope = 0, late_slope = 0;  ///< bytes a minute, of all; 0: not known
    };
    std::map<std::pair<std::int32_t, std::uint32_t>, Known> known;
    for (const auto& [key, whole] : wholes) {
        const Counted& entry_of = ledger_.counted_.at(key.first);
        const trace::LiveBlocks& counted = rest.at(key.first);
        const double sampled = whole.blocks.value();
        const double groups = std::max(whole.blocks.effective_groups(), 1.0);
        const Estimate by_samples = {
            sampled, std::max(whole.blocks.uncertainty(ledger_.times_).variance, sampled * sampled / groups)};
        // Large ones that were watched for without a break have all been seen, but not their ends.
        const bool all_seen = !whole.blocks.has_windows();
        Known& entry = known[key];
        const double more = counted.blocks[key.second] - sampled;
        const bool strangers =
            !whole.lives && more > kZ95 * std::sqrt(counted.variance[key.second] + by_samples.variance);
        if (strangers) uncharged += counted.bytes[key.second] * more / counted.blocks[key.second];
        const Estimate by_count = {counted.blocks[key.second], counted.variance[key.second]};
        const Estimate best = strangers ? by_samples : all_seen ? by_count : combine(by_count, by_samples);
        if (!(sampled > 0)) continue;
        entry.growth_factor = entry.factor = best.value / sampled;
        // Few samples know little of when the others were allocated; the counts do.
        if (entry_of.counts >= kFewCounts) {
            entry.slope = entry_of.slope(key.second, now_ns_);
            entry.late_slope = entry_of.slope_since(key.second, kLate * now_ns_);
            // Counted bytes are the allocator's; a row has what was asked for. What of them has been seen to
            // live has a growth of its own.
            if (whole.growth.value() > 0 && counted.bytes[key.second] > 0)
                entry.growth_factor = std::max(0.0, entry.slope) *
                                      (counted.bytes[key.second] / entry_of.counted.bytes[key.second]) *
                                      (best.value / sampled) *
                                      (whole.live.value() / counted.bytes[key.second]) / whole.growth.value();
        }
        // Somebody of whom no group of windows happened to see anything may be there as well.
        const double unseen = all_seen ? std::max(0.0, more) / std::max(best.value, 1.0) : 1 / (groups + 2);
        entry.relative_variance =
            unseen * unseen + (best.value > 0 ? best.variance / (best.value * best.value) : 0);
    }
    for (auto& [key, part] : parts_) {
        const auto account = static_cast<std::uint32_t>(key / kClasses);
        const std::pair<std::int32_t, std::uint32_t> of = {ledger_.accounts_[account].pid,
                                                           static_cast<std::uint32_t>(key % kClasses)};
        const Whole& whole = wholes.at(of);
        const Known& entry = known.at(of);
        const auto share = [](const SampleSum& part_of, const SampleSum& all) {
            return all.value() > 0 ? part_of.value() / all.value() : 0;
        };
        part.sampled = part.live.value();
        part.mistaken =
            kMistaken * static_cast<double>(ledger_.counted_.at(of.first).brief.at(of.second).samples());
        part.live.calibrate(whole.blocks, share(part.blocks, whole.blocks), entry.factor,
                            entry.relative_variance);
        part.growth.calibrate(whole.growth, share(part.growth, whole.growth), entry.growth_factor,
                              entry.relative_variance);
        if (entry.slope > 0) part.late_growth = part.growth.value() * entry.late_slope / entry.slope;
        part.unconfirmed *= entry.factor;
        take(account, part);
    }
    return uncharged;
}

}  // namespace memattach::profile
