#include "shadow_pages.h"

#include <algorithm>
#include <cstring>

#include "memattach/base/clock.h"

namespace memattach::probe {
namespace {

constexpr std::size_t kMostConstants = 2048;
constexpr std::size_t kFirstAhead = 1, kMostAhead = 64;
/// How often a page is used is learned by leaving it out of the space, now and then: what is left out is put
/// back where it is missed, as it was when the state was taken. `kLearn`: what one state says. A page that
/// has been missed is known to be in use, what came along with it isn't.
constexpr double kLearn = 0.3, kMissedUse = 0.5, kBroughtUse = 0.15;
/// Pages in use are left out in so many of the states, others more often; not more than so many at once that
/// are likely to be missed.
constexpr double kSurelyUsed = 0.6, kSureTest = 0.1, kTest = 0.35, kMostMissed = 2;
/// A page that is used in fewer of the states is forgotten: a miss takes as long as ten pages that are read
/// for nothing.
constexpr double kLeastUse = 0.1;
/// Where there are more, or reading them takes more of the time that a thread is held for, those have to be
/// used more often.
constexpr std::size_t kMostPages = 1024;
constexpr std::uint64_t kMostReadNs = Shadow::kLongestHoldNs / 2;
constexpr double kLeastUseOfMany = 0.3;
/// A page is written back for each run until it was found unchanged some ten times in a row.
constexpr double kLearnChange = 0.25, kLeastChange = 0.05;
/// A page that is missed comes with its neighbours: it takes as long as tens of pages that are read. A
/// program that misses more pages in one state than so many goes all over its heap.
constexpr std::size_t kManyMissed = 4;
constexpr std::uint64_t kAround = 16 << 10;
/// Of one state.
constexpr std::size_t kMostLate = 256;

bool is_same(const process::Mapping& a, const process::Mapping& b) {
    return a.start == b.start && a.end == b.end && a.file_offset == b.file_offset && a.same_file(b);
}

}  // namespace

ShadowPages::ShadowPages(const process::Memory& target, const PatchTable& patches,
                         std::span<const Redirect> redirects, ShadowShared& shared)
    : target_(target), patches_(patches), redirects_(redirects), shared_(shared) {}

void ShadowPages::begin_space(ShadowSpace& space, std::span<const process::Mapping> mappings) {
    const std::vector<process::Mapping> before =
        std::exchange(mappings_, std::vector<process::Mapping>(mappings.begin(), mappings.end()));
    std::erase_if(constants_, [&](const auto& entry) {
        const process::Mapping* then = process::find_mapping(before, base::Address(entry.first));
        const process::Mapping* now = mapping_of(entry.first);
        return then == nullptr || now == nullptr || !is_constant(entry.first) || !is_same(*then, *now);
    });
    for (const auto& [page, content] : constants_) space.fill(page, *content);
    if (store_.is_full()) {
        store_.clear();
        data_.clear();
    }
    // What was given to the shadow alone is elsewhere in this one.
    for (auto entry = data_.begin(); entry != data_.end();) {
        const process::Mapping* mapping = mapping_of(entry->first);
        entry = mapping != nullptr && holds_data(*mapping) ? std::next(entry) : drop(entry);
    }
    untouched_.clear();
    for (const auto& [page, held] : data_) {
        if (held.place != nullptr) untouched_.push_back(page);
    }
    touch(space);
    list_reads();
}

/// Where the next state's contents will be.
void ShadowPages::list_reads() {
    shared_.reads.clear();
    pool_used_ = 0;
    places_.clear();
    for (auto& [page, held] : data_) {
        shared_.reads.add(page, pool_used_);
        held.content = new_pages(1).data();
        places_.push_back(held.place);
    }
    listed_ = false;
}

/// What has just been read goes to its place while the processor's caches have it.
void ShadowPages::take(const PageReads::Run& run) {
    const std::span<std::byte> contents = shared_.reads.pool().subspan(run.place * kPage, run.pages * kPage);
    redirect(run.page, contents);
    for (std::size_t i = 0; i < run.pages; ++i) {
        if (std::byte* const place = places_[run.place + i])
            std::memcpy(place, contents.data() + i * kPage, kPage);
    }
}

bool ShadowPages::begin_state(const std::function<void()>& when_read) {
    const std::uint64_t start_ns = base::monotonic_ns();
    next_page_ = 0;
    ahead_ = 1;
    missed_here_ = late_ = 0;
    PageReads& reads = shared_.reads;
    taken_.assign(reads.runs().size(), false);
    reads.help(target_, ~std::uint64_t{0}, [&](std::size_t i) {
        const PageReads::Run& run = reads.runs()[i];
        if (run.failed) return;
        take(run);
        taken_[i] = true;
    });
    while (!reads.is_over()) {
        if (!is_held()) return false;
        __builtin_ia32_pause();
    }
    std::vector<std::uint64_t> gone;
    for (std::size_t i = 0; i < taken_.size(); ++i) {
        const PageReads::Run& run = reads.runs()[i];
        if (taken_[i]) continue;
        for (std::size_t at = 0; run.failed && at < run.pages * kPage; at += kPage) {
            const std::span<std::byte> content = reads.pool().subspan(run.place * kPage + at, kPage);
            if (!target_.read_exactly(base::Address(run.page + at), content)) gone.push_back(run.page + at);
        }
    }
    const bool is_whole = is_held();
    read_ns_ = base::monotonic_ns() - start_ns;
    when_read();
    for (std::size_t i = 0; i < taken_.size(); ++i) {
        if (!taken_[i]) take(reads.runs()[i]);
    }
    is_restored_ = true;
    // What can't be read any more the program won't touch before it asks for it again.
    for (const std::uint64_t page : gone) drop(data_.find(page));
    return is_whole;
}

void ShadowPages::touch(ShadowSpace& space) {
    std::erase_if(untouched_, [&](std::uint64_t page) {
        const auto known = data_.find(page);
        return known == data_.end() || known->second.place == nullptr;
    });
    space.touch(untouched_);
    untouched_.clear();
}

void ShadowPages::learn(ShadowSpace& space, bool tests) {
    const double least = data_.size() > kMostPages || read_ns_ > kMostReadNs ? kLeastUseOfMany : kLeastUse;
    const auto test_chance = [](const Held& held) { return held.use > kSurelyUsed ? kSureTest : kTest; };
    double missed = 0;
    for (const auto& [page, held] : data_) missed += test_chance(held) * held.use;
    const double share = tests ? std::min(1.0, kMostMissed / std::max(missed, kMostMissed)) : 0;
    std::uniform_real_distribution<double> chance;
    for (auto entry = data_.begin(); entry != data_.end();) {
        Held& held = entry->second;
        if (held.is_tested) held.use += kLearn * ((held.place != nullptr ? 1 : 0) - held.use);
        if (held.use < least) {
            entry = drop(entry);
            continue;
        }
        held.is_tested = chance(random_) < share * test_chance(held);
        if (held.is_tested && held.place != nullptr) {
            store_.drop(entry->first);
            held.place = nullptr;
        }
        ++entry;
    }
    touch(space);
    list_reads();
}

std::map<std::uint64_t, ShadowPages::Held>::iterator ShadowPages::drop(
    std::map<std::uint64_t, Held>::iterator entry) {
    if (entry->second.place != nullptr) store_.drop(entry->first);
    listed_ = false;
    return data_.erase(entry);
}

bool ShadowPages::is_held() const {
    return shared_.hold_over.load(std::memory_order_acquire) == 0;
}

std::span<std::byte> ShadowPages::new_pages(std::size_t count) {
    if (pool_used_ + count > PageReads::kPoolPages) return {};
    const std::span<std::byte> out = shared_.reads.pool().subspan(pool_used_ * kPage, count * kPage);
    pool_used_ += count;
    return out;
}

void ShadowPages::restore() {
    const bool all = std::exchange(restores_all_, false);
    if (std::exchange(is_restored_, false)) return;
    if (!listed_ || all) list_copies(all);
    for (const Copy& copy : copies_) std::memcpy(copy.place, copy.content, copy.size_bytes);
    listed_ = !all;
}

void ShadowPages::see_changes() {
    for (auto& [page, held] : data_) {
        if (held.place == nullptr) continue;
        const bool is_changed = std::memcmp(held.place, held.content, kPage) != 0;
        held.change += kLearnChange * ((is_changed ? 1 : 0) - held.change);
        if (is_changed) held.change = std::max(held.change, kLeastChange);
    }
    listed_ = false;
}

void ShadowPages::list_copies(bool all) {
    copies_.clear();
    for (const auto& [page, held] : data_) {
        if (held.place == nullptr || (!all && held.change < kLeastChange)) continue;
        if (!copies_.empty()) {
            Copy& last = copies_.back();
            if (last.content + last.size_bytes == held.content &&
                last.place + last.size_bytes == held.place) {
                last.size_bytes += kPage;
                continue;
            }
        }
        copies_.push_back({held.place, held.content, kPage});
    }
}

const process::Mapping* ShadowPages::mapping_of(std::uint64_t page) const {
    return process::find_mapping(mappings_, base::Address(page));
}

/// What lies in no mapping may be in one that is new.
bool ShadowPages::is_constant(std::uint64_t page) const {
    const process::Mapping* mapping = mapping_of(page);
    return mapping != nullptr && !holds_data(*mapping);
}

bool ShadowPages::bring(ShadowSpace& space, std::uint64_t page) {
    if (is_constant(page)) {
        ++missed_constants_;
        return bring_constant(space, page);
    }
    const auto known = data_.find(page);
    if (known != data_.end() && known->second.place == nullptr)
        return put(page, known->second) && space.wake(page);
    ++missed_data_;
    ++missed_here_;
    ahead_ = page == next_page_ ? std::min(2 * ahead_, kMostAhead) : kFirstAhead;
    std::size_t count = 1;
    while (count < ahead_ && data_.count(page + count * kPage) == 0 && !is_constant(page + count * kPage))
        ++count;
    next_page_ = page + count * kPage;
    if (count == 1 && bring_around(space, page)) return true;
    if (bring_data(space, page, count, page)) return true;
    next_page_ = page + kPage;
    return count > 1 && bring_data(space, page, 1, page);
}

/// With its neighbours that aren't there.
bool ShadowPages::bring_around(ShadowSpace& space, std::uint64_t page) {
    const std::uint64_t bytes = missed_here_ > kManyMissed ? 2 * kAround : kAround;
    const std::uint64_t first = page & ~(bytes - 1);
    const process::Mapping* mapping = mapping_of(page);
    if (mapping == nullptr) return false;
    std::uint64_t from = page;
    std::uint64_t to = page + kPage;
    while (from > first && from > mapping->start.value() && data_.count(from - kPage) == 0) from -= kPage;
    while (to < first + bytes && to < mapping->end.value() && data_.count(to) == 0) to += kPage;
    return bring_data(space, from, (to - from) / kPage, page);
}

/// `count` pages from `first` on, for the shadow that misses `page`.
bool ShadowPages::bring_data(ShadowSpace& space, std::uint64_t first, std::size_t count, std::uint64_t page) {
    const std::span<std::byte> contents = new_pages(count);
    if (contents.empty()) return false;
    // Late, it is as it was a moment later: most of what lies in memory doesn't change in a millisecond.
    const bool held = is_held();
    const bool read =
        (held || late_ + count <= kMostLate) && target_.read_exactly(base::Address(first), contents);
    if (!held || !is_held()) late_ += count;
    if (!read && count == 1 && space.kernel().has_given(first)) {
        std::memset(contents.data(), 0, contents.size());
    } else if (!read) {
        return false;
    }
    redirect(first, contents);
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t at = first + i * kPage;
        Held& entry = data_[at];
        entry = {contents.data() + i * kPage, nullptr, at == page ? kMissedUse : kBroughtUse, 1, false};
        if (!put(at, entry)) return false;
        if (at != page) untouched_.push_back(at);
    }
    return space.wake(page);
}

/// In the store, from where the shadow has it when it asks again.
bool ShadowPages::put(std::uint64_t page, Held& held) {
    held.place = store_.at(page);
    if (held.place == nullptr) return false;
    std::memcpy(held.place, held.content, kPage);
    listed_ = false;
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
