#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memattach/base/page_buffer.h"
#include "memattach/probe/patches.h"
#include "memattach/probe/shadow.h"
#include "memattach/process/maps.h"
#include "memattach/process/memory.h"
#include "shadow_space.h"

namespace memattach::probe {

/// The contents of a shadow's pages: as the target held them when the present state was taken.
///
/// What the target may write to is read anew for each state, all pages at once that were ever touched in this
/// space; a page that is touched for the first time is read while the target's thread is held. Code and
/// constants are read once.
class ShadowPages {
  public:
    /// `redirects`: pointers that the shadow's copy holds the other way round (Redirect), always.
    ShadowPages(const process::Memory& target, const PatchTable& patches, std::span<const Redirect> redirects,
                ShadowShared& shared)
        : target_(target), patches_(patches), redirects_(redirects), shared_(shared) {}

    /// The space is a new one and holds nothing: brings what is likely to be needed.
    void begin_space(ShadowSpace& space, std::span<const process::Mapping> mappings);
    /// A new state has been submitted, and its thread is held: reads what the space holds.
    void begin_state();
    /// Writes the state's pages over what the space holds.
    bool restore(ShadowSpace& space);
    /// Brings a page that the shadow misses; with what follows it, where pages are missed one after the
    /// other. False where there is none, or the thread isn't held any more.
    bool bring(ShadowSpace& space, std::uint64_t page);

    /// How many pages were missed so far that the target may write to, and how many others.
    [[nodiscard]] std::size_t missed_data() const { return missed_data_; }
    /// Of the present state: pages that were read when its thread wasn't held any more.
    [[nodiscard]] std::size_t late() const { return late_; }
    [[nodiscard]] std::size_t missed_constants() const { return missed_constants_; }
    /// How many pages are brought for each state.
    [[nodiscard]] std::size_t known() const { return data_.size(); }
    /// False where the space holds more than is to be read each time.
    [[nodiscard]] bool fits() const { return data_.size() <= kMostPages; }

  private:
    static constexpr std::uint64_t kPage = ShadowShared::kPageBytes;
    static constexpr std::size_t kMostPages = 1024;
    static constexpr std::size_t kPoolPages = 4096;
    using Page = std::array<std::byte, kPage>;

    [[nodiscard]] bool is_held() const;
    [[nodiscard]] bool is_constant(std::uint64_t page) const;
    void redirect(std::uint64_t page, std::span<std::byte> contents) const;
    bool bring_constant(ShadowSpace& space, std::uint64_t page);
    bool read_constant(std::uint64_t page, Page& content);
    /// Contiguous; empty where there is no room left.
    std::span<std::byte> new_pages(std::size_t count);
    void list_pieces();
    bool bring_around(ShadowSpace& space, std::uint64_t page);
    bool bring_data(ShadowSpace& space, std::uint64_t page, std::size_t count);

    const process::Memory& target_;
    const PatchTable& patches_;
    std::span<const Redirect> redirects_;
    ShadowShared& shared_;
    std::span<const process::Mapping> mappings_;
    std::map<std::uint64_t, std::byte*> data_;  ///< in the space: page, content in the present state
    /// How often a page was missed in the last spaces, the last ones counting most.
    std::unordered_map<std::uint64_t, double> missed_;
    std::mt19937_64 random_{1};
    std::unordered_map<std::uint64_t, std::unique_ptr<Page>> constants_;
    base::PageBuffer pool_{kPoolPages * kPage};
    std::size_t pool_used_ = 0;
    std::uint64_t next_page_ = 0;  ///< behind the last that was brought
    std::size_t ahead_ = 1, missed_here_ = 0, late_ = 0;
    std::size_t missed_data_ = 0, missed_constants_ = 0;
    std::vector<process::Memory::Piece> pieces_;
    std::vector<std::pair<std::uint64_t, std::byte>> originals_;
};

}  // namespace memattach::probe
