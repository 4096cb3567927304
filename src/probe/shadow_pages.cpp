#include "shadow_pages.h"

#include <algorithm>
#include <cstring>

namespace memattach::probe {
namespace {

constexpr std::size_t kMostConstants = 2048;
constexpr std::size_t kFirstAhead = 1, kMostAhead = 64;
/// A page that was missed so often, the last times counting most, will be needed again.
constexpr double kOften = 1, kSeldom = 0.3, kFades = 0.75;

}  // namespace

void ShadowPages::begin_space(ShadowSpace& space, std::span<const process::Mapping> mappings) {
    mappings_ = mappings;
    data_.clear();
    for (const auto& [page, content] : constants_) {
        if (is_constant(page)) space.fill(page, *content);
    }
    static constexpr Page kEmpty{};
    for (auto& [page, times] : missed_) {
        times *= kFades;
        if (times > kOften && data_.size() < kMostPages / 2 && !is_constant(page) &&
            space.fill_data(page, kEmpty))
            data_[page] = kEmpty.data();
    }
    std::erase_if(missed_, [](const auto& entry) { return entry.second < kSeldom; });
}

/// A page that can't be read any more is none that the program will touch before it asks for it again.
void ShadowPages::begin_state() {
    pool_used_ = 0;
    next_page_ = 0;
    ahead_ = 1;
    pieces_.clear();
    for (auto& [page, content] : data_) {
        const std::span<std::byte> space = new_pages(1);
        content = space.data();
        pieces_.push_back({base::Address(page), space});
    }
    for (std::size_t first = 0; first < pieces_.size();) {
        first += target_.read_pieces(std::span(pieces_).subspan(first));
        if (first < pieces_.size()) std::memset(pieces_[first++].out.data(), 0, kPage);
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
    pages_.clear();
    contents_.clear();
    for (const auto& [page, content] : data_) {
        pages_.push_back(page);
        contents_.emplace_back(content, kPage);
    }
    return space.overwrite(pages_, contents_);
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
    missed_[page] += 1;
    ahead_ = page == next_page_ ? std::min(2 * ahead_, kMostAhead) : kFirstAhead;
    std::size_t count = 1;
    while (count < ahead_ && data_.count(page + count * kPage) == 0 && !is_constant(page + count * kPage))
        ++count;
    next_page_ = page + count * kPage;
    if (bring_data(space, page, count)) return true;
    next_page_ = page + kPage;
    return count > 1 && bring_data(space, page, 1);
}

bool ShadowPages::bring_data(ShadowSpace& space, std::uint64_t page, std::size_t count) {
    const std::span<std::byte> contents = new_pages(count);
    if (contents.empty()) return false;
    const bool read = is_held() && target_.read_exactly(base::Address(page), contents) && is_held();
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
