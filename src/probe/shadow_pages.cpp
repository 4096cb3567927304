#include "shadow_pages.h"

#include <algorithm>
#include <cstring>

namespace memattach::probe {
namespace {

constexpr std::size_t kMostConstants = 2048;
constexpr std::size_t kFirstAhead = 1, kMostAhead = 64;
/// Which of the pages that are brought each time are still in use doesn't show. When the space is made anew
/// most of those stay that were missed again after they had been left out, few of those that were missed
/// once: a program may just have passed them. Each costs a microsecond of each window, and a miss twenty.
constexpr double kAgain = 1.5, kAgainStay = 0.95, kOnce = 0.5, kOnceStay = 0.35, kOthersStay = 0.15;
constexpr double kFades = 0.9, kForgotten = 0.3;
/// A program that misses more pages in one state than so many goes all over its heap.
constexpr std::size_t kManyMissed = 6;
constexpr std::uint64_t kAround = 16 << 10;
/// Of one state.
constexpr std::size_t kMostLate = 256;

}  // namespace

void ShadowPages::begin_space(ShadowSpace& space, std::span<const process::Mapping> mappings) {
    mappings_ = mappings;
    for (const auto& [page, content] : constants_) {
        if (is_constant(page)) space.fill(page, *content);
    }
    static constexpr Page kEmpty{};
    std::uniform_real_distribution<double> chance;
    const double room = fits() ? 1 : 0.5;
    for (auto entry = data_.begin(); entry != data_.end();) {
        const auto missed = missed_.find(entry->first);
        const double times = missed == missed_.end() ? 0 : missed->second;
        const double stays = times > kAgain ? kAgainStay : times > kOnce ? kOnceStay : kOthersStay;
        const bool stayed = chance(random_) < room * stays && !is_constant(entry->first) &&
                            space.fill_data(entry->first, kEmpty);
        entry = stayed ? std::next(entry) : data_.erase(entry);
    }
    for (auto& [page, times] : missed_) times *= kFades;
    std::erase_if(missed_, [](const auto& entry) { return entry.second < kForgotten; });
}

/// A page that can't be read any more is none that the program will touch before it asks for it again.
void ShadowPages::begin_state() {
    pool_used_ = 0;
    next_page_ = 0;
    ahead_ = 1;
    missed_here_ = late_ = 0;
    for (auto& [page, content] : data_) content = new_pages(1).data();
    list_pieces();
    for (std::size_t first = 0; first < pieces_.size();) {
        first += target_.read_pieces(std::span(pieces_).subspan(first));
        if (first == pieces_.size()) break;
        const process::Memory::Piece& torn = pieces_[first++];
        for (std::size_t at = 0; at < torn.out.size(); at += kPage) {
            const std::span<std::byte> page = torn.out.subspan(at, kPage);
            if (!target_.read_exactly(torn.from + at, page)) std::memset(page.data(), 0, kPage);
        }
    }
    for (const process::Memory::Piece& piece : pieces_) redirect(piece.from.value(), piece.out);
}

bool ShadowPages::is_held() const {
    return shared_.hold_over.load(std::memory_order_acquire) == 0;
}

std::span<std::byte> ShadowPages::new_pages(std::size_t count) {
    if (pool_used_ + count > kPoolPages) return {};
    const std::span<std::byte> out(pool_.data() + pool_used_ * kPage, count * kPage);
    pool_used_ += count;
    return out;
}

bool ShadowPages::restore(ShadowSpace& space) {
    list_pieces();
    return space.overwrite(pieces_);
}

/// Pages in a row whose contents are, too, are one piece: to read or write that takes a third less.
void ShadowPages::list_pieces() {
    pieces_.clear();
    for (const auto& [page, content] : data_) {
        if (!pieces_.empty()) {
            std::span<std::byte>& last = pieces_.back().out;
            if (pieces_.back().from + last.size() == base::Address(page) &&
                last.data() + last.size() == content) {
                last = std::span(last.data(), last.size() + kPage);
                continue;
            }
        }
        pieces_.push_back({base::Address(page), std::span(content, kPage)});
    }
}

/// What lies in no mapping may be in one that is new.
bool ShadowPages::is_constant(std::uint64_t page) const {
    const auto above = std::upper_bound(
        mappings_.begin(), mappings_.end(), page,
        [](std::uint64_t at, const process::Mapping& mapping) { return at < mapping.start.value(); });
    return above != mappings_.begin() && std::prev(above)->contains(base::Address(page)) &&
           !std::prev(above)->writable;
}

bool ShadowPages::bring(ShadowSpace& space, std::uint64_t page) {
    if (is_constant(page)) {
        ++missed_constants_;
        return bring_constant(space, page);
    }
    ++missed_data_;
    ++missed_here_;
    missed_[page] += 1;
    ahead_ = page == next_page_ ? std::min(2 * ahead_, kMostAhead) : kFirstAhead;
    std::size_t count = 1;
    while (count < ahead_ && data_.count(page + count * kPage) == 0 && !is_constant(page + count * kPage))
        ++count;
    next_page_ = page + count * kPage;
    if (count == 1 && missed_here_ > kManyMissed && bring_around(space, page)) return true;
    if (bring_data(space, page, count)) return true;
    next_page_ = page + kPage;
    return count > 1 && bring_data(space, page, 1);
}

/// Where a program goes all over its heap: with its neighbours that aren't there.
bool ShadowPages::bring_around(ShadowSpace& space, std::uint64_t page) {
    const std::uint64_t bytes = missed_here_ > 3 * kManyMissed ? 2 * kAround : kAround;
    const std::uint64_t first = page & ~(bytes - 1);
    const auto mapping = std::upper_bound(
        mappings_.begin(), mappings_.end(), page,
        [](std::uint64_t at, const process::Mapping& next) { return at < next.start.value(); });
    if (mapping == mappings_.begin() || !std::prev(mapping)->contains(base::Address(page))) return false;
    std::uint64_t from = page;
    std::uint64_t to = page + kPage;
    while (from > first && from > std::prev(mapping)->start.value() && data_.count(from - kPage) == 0)
        from -= kPage;
    while (to < first + bytes && to < std::prev(mapping)->end.value() && data_.count(to) == 0) to += kPage;
    return bring_data(space, from, (to - from) / kPage);
}

bool ShadowPages::bring_data(ShadowSpace& space, std::uint64_t page, std::size_t count) {
    const std::span<std::byte> contents = new_pages(count);
    if (contents.empty()) return false;
    // Late, it is as it was a moment later: most of what lies in memory doesn't change in a millisecond.
    const bool held = is_held();
    const bool read =
        (held || late_ + count <= kMostLate) && target_.read_exactly(base::Address(page), contents);
    if (!held || !is_held()) late_ += count;
    if (!read && count == 1 && space.kernel().has_given(page)) {
        std::memset(contents.data(), 0, contents.size());
    } else if (!read) {
        return false;
    }
    redirect(page, contents);
    if (!space.fill_data(page, contents)) return false;
    for (std::size_t i = 0; i < count; ++i) data_[page + i * kPage] = contents.data() + i * kPage;
    return true;
}

void ShadowPages::redirect(std::uint64_t page, std::span<std::byte> contents) const {
    for (const Redirect& r : redirects_) {
        const std::uint64_t offset = r.slot.value() - page;
        if (offset > contents.size() - sizeof r.original) continue;
        std::uint64_t value = 0;
        std::memcpy(&value, contents.data() + offset, sizeof value);
        if (value == r.original) std::memcpy(contents.data() + offset, &r.alias, sizeof r.alias);
    }
}

bool ShadowPages::bring_constant(ShadowSpace& space, std::uint64_t page) {
    auto cached = constants_.find(page);
    if (cached == constants_.end()) {
        if (constants_.size() >= kMostConstants) constants_.clear();
        auto content = std::make_unique<Page>();
        if (!read_constant(page, *content)) return false;
        cached = constants_.emplace(page, std::move(content)).first;
    }
    return space.fill(page, *cached->second);
}

/// The target's code without our breakpoints. They come and go meanwhile: what the table listed before and
/// after is taken out.
bool ShadowPages::read_constant(std::uint64_t page, Page& content) {
    originals_.clear();
    const auto collect = [&] {
        const std::uint32_t used =
            std::min<std::uint32_t>(patches_.used.load(std::memory_order_acquire), PatchTable::kCapacity);
        for (std::uint32_t i = 0; i < used; ++i) {
            const PatchTable::Entry& entry = patches_.entries[i];
            const std::uint64_t address = entry.address.load(std::memory_order_acquire);
            if (address - page < kPage && entry.size_bytes.load() == 1)
                originals_.emplace_back(address - page, static_cast<std::byte>(entry.original.load()));
        }
    };
    collect();
    if (!target_.read_exactly(base::Address(page), content)) return false;
    collect();
    for (const auto& [offset, value] : originals_) content[offset] = value;
    return true;
}

}  // namespace memattach::probe
