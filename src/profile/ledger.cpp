#include "memattach/profile/ledger.h"

#include <algorithm>
#include <cmath>

#include "memattach/profile/profile.h"

namespace memattach::profile {

std::size_t Ledger::KeyHash::operator()(const Key& key) const {
    std::uint64_t hash = (key.address ^ (static_cast<std::uint64_t>(key.pid) << 48)) * 0x9E3779B97F4A7C15ULL;
    return static_cast<std::size_t>(hash ^ (hash >> 32));
}

Ledger::Ledger(std::uint64_t start_ns, std::size_t max_blocks)
    : start_ns_(start_ns), max_blocks_(max_blocks) {}

double Ledger::since_start(std::uint64_t time_ns) const {
    return time_ns > start_ns_ ? static_cast<double>(time_ns - start_ns_) : 0;
}

std::uint32_t Ledger::account_of(CellId cell, std::int32_t pid) {
    constexpr std::uint32_t kNone = ~0U;
    const auto index = static_cast<std::size_t>(cell);
    if (index >= account_by_cell_.size()) account_by_cell_.resize(index + 1, kNone);
    if (account_by_cell_[index] == kNone) {
        account_by_cell_[index] = static_cast<std::uint32_t>(accounts_.size());
        Account& account = accounts_.emplace_back();
        account.cell = cell;
        account.pid = pid;
        account.changed_ns = now_ns_;
        account.peak = peak_;
    }
    return account_by_cell_[index];
}

/// Moves the clock. Events may come a little out of order (of several threads, of a window that closed): the
/// clock stays then.
void Ledger::advance(std::uint64_t time_ns) {
    if (start_ns_ == 0) start_ns_ = time_ns;
    now_ns_ = std::max(now_ns_, since_start(time_ns));
    if (const unsigned doublings = slots_.doublings_for(now_ns_); doublings > 0) {
        for (Account& account : accounts_) {
            for (unsigned i = 0; i < doublings; ++i) {
                TimeSlots::halve(account.live_ns);
                TimeSlots::halve(account.born);
            }
        }
        slots_.grow(doublings);
    }
    if (any_windowed_) {
        // The more blocks there are, the seldomer: at most a hundredth of the time goes into it.
        const double every_ns = std::max(1e9, static_cast<double>(blocks_.size()) * 1e4);
        if (now_ns_ - estimated_ns_ >= every_ns) estimate_windowed();
    }
}

/// The high-water mark, in O(1): an account remembers its live bytes at the peak only when it changes
/// for the first time after it; until then they are what it has now.
void Ledger::change(Account& account, double continuous, double windowed, double variance) {
    if (account.peak != peak_) {
        account.at_peak = account.live + account.windowed_live;
        account.variance_at_peak = account.live_variance + account.windowed_variance;
        account.peak = peak_;
    }
    slots_.add_time(account.live_ns, account.changed_ns, now_ns_, account.live + account.windowed_live);
    account.changed_ns = now_ns_;
    account.live += continuous;
    account.windowed_live += windowed;
    account.live_variance = std::max(0.0, account.live_variance + variance);
    if (std::abs(account.live) < 1e-3) account.live = account.live_variance = 0;
    total_live_ += continuous + windowed;
    if (total_live_ > peak_live_) {
        peak_live_ = total_live_;
        ++peak_;
    }
}

void Ledger::add(const trace::Alloc& alloc, CellId cell) {
    advance(alloc.time_ns);
    const Key key{alloc.pid, alloc.address};
    if (const auto old = blocks_.find(key); old != blocks_.end()) {
        end_block(old->second, false, 1, now_ns_);
        erase(key);
    }
    // A block of 0 bytes is kept as if it had one (and stands for none).
    const double size = static_cast<double>(alloc.size_bytes);
    const double kept =
        std::max(-std::expm1(-std::max(size, 1.0) / std::max(alloc.sampling_bytes, 1e-3)), 1e-12);
    const double times = 1 / (kept * std::clamp(alloc.armed_fraction, 1e-9, 1.0));
    const std::uint32_t index = account_of(cell, alloc.pid);
    Account& account = accounts_[index];
    account.alloc.add(size * times, kept, alloc.kind, alloc.window);
    account.count.add(times, kept, alloc.kind, alloc.window);
    const bool is_estimated = alloc.window != 0 || alloc.kind == trace::AllocKind::large;
    if (is_estimated) account.windowed_alloc += size * times;
    account.born[slots_.slot_of(since_start(alloc.time_ns))] += 1;

    Block block{index, alloc.kind, alloc.size_bytes, size * times, kept, alloc.window, alloc.time_ns, false};
    if (alloc.window != 0) block.may_live = 1.0 / (1.0 + earlier_here(index, alloc.address));
    if (thinned_ > 0) {
        const std::uint64_t bits = trace::thinning_bits(alloc.address, alloc.time_ns);
        if (bits % (std::uint64_t{1} << thinned_) != 0) return;
        block.weight = std::ldexp(block.weight, static_cast<int>(thinned_));
        block.kept = std::ldexp(block.kept, -static_cast<int>(thinned_));
    }
    if (block.is_estimated()) {
        any_windowed_ = true;
    } else {
        change(account, block.weight, 0, block.variance());
    }
    blocks_.emplace(key, block);
    if (alloc.kind == trace::AllocKind::mmap) mappings_[key] = alloc.size_bytes;
    if (blocks_.size() > max_blocks_) thin();
}

double Ledger::earlier_here(std::uint32_t account, std::uint64_t address) {
    constexpr std::size_t kMost = std::size_t{1} << 16;
    if (births_.size() >= kMost) births_.clear();
    return births_[{static_cast<std::int32_t>(account), address}]++;
}

void Ledger::end_block(const Block& block, bool seen, double part, double end_ns) {
    Account& account = accounts_[block.account];
    const double birth = since_start(block.birth_ns);
    const double end = std::clamp(end_ns, std::min(birth, now_ns_), now_ns_);
    const double age = std::max(0.0, end - birth);
    const double weight = block.weight * part;
    if (seen && age < static_cast<double>(kTemporaryNs)) {
        account.temporary.add(weight, block.kept, block.kind, block.window);
    }
    // Moments of its lifetime; the slope of live bytes is linear in them.
    const double s = 1e-9;
    const double v = age * s;
    const double u = (end * end - birth * birth) * s * s / 2;
    if (!block.is_estimated()) {
        change(account, -weight, 0, -block.variance());
        const double variance = weight * weight * (1 - block.kept);
        account.dead_v += weight * v;
        account.dead_u += weight * u;
        account.dead_vv += variance * v * v;
        account.dead_uv += variance * u * v;
        account.dead_uu += variance * u * u;
        return;
    }
    // How much these vary is seen from one group of windows to the other.
    account.windowed_dead_v.add(weight * v, 1, block.kind, block.window);
    account.windowed_dead_u.add(weight * u, 1, block.kind, block.window);
    if (age < kYoungNs && end_counted(block, weight, age)) return;
    if (birth > estimated_ns_ - kYoungNs) account.brief_byte_ns += weight * age;
}

void Ledger::erase(const Key& key) {
    const auto block = blocks_.find(key);
    if (block == blocks_.end()) return;
    if (block->second.kind == trace::AllocKind::mmap) mappings_.erase(key);
    blocks_.erase(block);
}

void Ledger::add(const trace::Free& free) {
    advance(free.time_ns);
    if (free.size_bytes > 0) {
        unmap(free);
        return;
    }
    const Key key{free.pid, free.address};
    const auto block = blocks_.find(key);
    if (block == blocks_.end()) {
        ++unknown_frees_;
        return;
    }
    end_block(block->second, true, 1, since_start(free.time_ns));
    erase(key);
}

void Ledger::unmap(const trace::Free& free) {
    const std::uint64_t from = free.address;
    const std::uint64_t to = free.address + std::min(free.size_bytes, ~std::uint64_t{0} - free.address);
    bool found = false;
    // A mapping that begins below may reach into the range.
    auto it = mappings_.upper_bound({free.pid, from});
    if (it != mappings_.begin()) {
        const auto before = std::prev(it);
        if (before->first.pid == free.pid && before->first.address + before->second > from) it = before;
    }
    while (it != mappings_.end() && it->first.pid == free.pid && it->first.address < to) {
        found = true;
        const Key key = it->first;
        const std::uint64_t size = it->second;
        ++it;
        const auto block_it = blocks_.find(key);
        if (block_it == blocks_.end() || size == 0) continue;
        const Block block = block_it->second;
        const std::uint64_t end = key.address + size;
        const std::uint64_t cut_from = std::max(from, key.address);
        const std::uint64_t cut_to = std::min(to, end);
        const auto share = [&](std::uint64_t bytes) {
            return static_cast<double>(bytes) / static_cast<double>(size);
        };
        end_block(block, true, share(cut_to - cut_from), since_start(free.time_ns));
        erase(key);
        const auto keep = [&](std::uint64_t address, std::uint64_t bytes) {
            if (bytes == 0) return;
            Block rest = block;
            rest.size = bytes;
            rest.weight *= share(bytes);
            if (rest.window == 0) change(accounts_[rest.account], 0, 0, rest.variance());
            blocks_.insert_or_assign({key.pid, address}, rest);
            mappings_[{key.pid, address}] = bytes;
        };
        keep(key.address, cut_from - key.address);
        keep(cut_to, end - cut_to);
    }
    if (!found) ++unknown_frees_;
}

void Ledger::add(const trace::Window& window) {
    advance(window.end_ns);
    if (window.id == 0) return;
    any_windowed_ = true;
    times_.at(static_cast<std::size_t>(window.kind)).add(window);
}

void Ledger::add(const trace::Unseen& unseen) {
    const auto block = blocks_.find({unseen.pid, unseen.address});
    if (block != blocks_.end()) block->second.unseen = true;
}

void Ledger::thin() {
    for (auto it = blocks_.begin(); it != blocks_.end();) {
        Block& block = it->second;
        const bool keep = (trace::thinning_bits(it->first.address, block.birth_ns) >> thinned_ & 1) == 0;
        const double weight = block.weight;
        const double variance = block.variance();
        if (keep) {
            block.weight *= 2;
            block.kept /= 2;
        }
        if (!block.is_estimated()) {
            change(accounts_[block.account], keep ? weight : -weight, 0,
                   keep ? block.variance() - variance : -variance);
        }
        if (keep) {
            ++it;
        } else {
            if (block.kind == trace::AllocKind::mmap) mappings_.erase(it->first);
            it = blocks_.erase(it);
        }
    }
    ++thinned_;
}

}  // namespace memattach::profile
