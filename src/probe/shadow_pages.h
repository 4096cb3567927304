#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memattach/probe/patches.h"
#include "memattach/probe/shadow.h"
#include "memattach/process/maps.h"
#include "memattach/process/memory.h"
#include "shadow_space.h"
#include "shadow_store.h"

namespace memattach::probe {

/// The contents of a shadow's pages: as the target held them when the present state was taken.
///
/// What the target may write to is read anew for each state, all pages at once that were touched lately; a
/// page that is touched for the first time is read while the target's thread is held. Code and constants are
/// read once.
class ShadowPages {
  public:
    /// `redirects`: pointers that the shadow's copy holds the other way round (Redirect), always.
    ShadowPages(const process::Memory& target, const PatchTable& patches, std::span<const Redirect> redirects,
                ShadowShared& shared);

    /// ShadowSpace::Options::data_fd.
    [[nodiscard]] int data_fd() const { return store_.fd(); }
    /// The space is a new one and holds no constants.
    void begin_space(ShadowSpace& space, std::span<const process::Mapping> mappings);
    /// A new state has been submitted, and its thread is held: reads what the space holds. False where it
    /// wasn't held long enough for that. `when_read`: it needn't be held for these pages any more.
    bool begin_state(const std::function<void()>& when_read);
    /// Writes the state's pages over what the space holds. Not all of them, the processor's caches would have
    /// nothing else afterwards: those that runs change, as far as that is known.
    void restore();
    /// A run that began with all pages as they were in the state has just ended: which of them it has
    /// changed. Those that follow and don't go farther change no others.
    void see_changes();
    /// A run did what it shouldn't have: the next restore() writes all pages.
    void restore_all() { restores_all_ = true; }
    /// Brings a page that the shadow misses; with what follows it, where pages are missed one after the
    /// other. False where there is none, or the thread isn't held any more.
    bool bring(ShadowSpace& space, std::uint64_t page);
    /// The state isn't needed any more: forgets pages that are seldom used, and makes the others ready.
    /// `tests`: the next state may take
    /// a little longer for it.
    void learn(ShadowSpace& space, bool tests);

    /// How many pages were missed so far that the target may write to, and how many others.
    [[nodiscard]] std::size_t missed_data() const { return missed_data_; }
    /// Of the present state: pages that were read when its thread wasn't held any more.
    [[nodiscard]] std::size_t late() const { return late_; }
    [[nodiscard]] std::size_t missed_constants() const { return missed_constants_; }
    /// Whether a new space is needed, for more pages.
    [[nodiscard]] bool is_full() const { return store_.is_full(); }

  private:
    static constexpr std::uint64_t kPage = ShadowShared::kPageBytes;
    using Page = std::array<std::byte, kPage>;
    /// A page that is in the space.
    struct Held {
        std::byte* content = nullptr;  ///< in the present state
        std::byte* place = nullptr;    ///< in the store; null: it is left out
        double use = 0;                ///< in how many of the states it is used
        double change = 1;             ///< in how many of those that were looked at it was changed
        bool is_tested = false;        ///< it was left out when the state was taken
    };

    [[nodiscard]] bool is_held() const;
    [[nodiscard]] const process::Mapping* mapping_of(std::uint64_t page) const;
    [[nodiscard]] bool is_constant(std::uint64_t page) const;
    void redirect(std::uint64_t page, std::span<std::byte> contents) const;
    bool bring_constant(ShadowSpace& space, std::uint64_t page);
    bool read_constant(std::uint64_t page, Page& content);
    /// Contiguous; empty where there is no room left.
    std::span<std::byte> new_pages(std::size_t count);
    void list_reads();
    void list_copies(bool all);
    void take(const PageReads::Run& run);
    bool put(std::uint64_t page, Held& held);
    void touch(ShadowSpace& space);
    bool bring_around(ShadowSpace& space, std::uint64_t page);
    bool bring_data(ShadowSpace& space, std::uint64_t first, std::size_t count, std::uint64_t page);
    std::map<std::uint64_t, Held>::iterator drop(std::map<std::uint64_t, Held>::iterator entry);

    const process::Memory& target_;
    const PatchTable& patches_;
    std::span<const Redirect> redirects_;
    ShadowShared& shared_;
    std::vector<process::Mapping> mappings_;
    ShadowStore store_;
    std::map<std::uint64_t, Held> data_;  ///< by page
    std::mt19937_64 random_{1};
    std::unordered_map<std::uint64_t, std::unique_ptr<Page>> constants_;
    std::size_t pool_used_ = 0;
    std::uint64_t read_ns_ = 0;    ///< what reading all pages took last
    std::uint64_t next_page_ = 0;  ///< behind the last that was brought
    std::size_t ahead_ = 1, missed_here_ = 0, late_ = 0;
    std::size_t missed_data_ = 0, missed_constants_ = 0;
    /// Pages in a row whose contents are, too.
    struct Copy {
        std::byte* place = nullptr;
        const std::byte* content = nullptr;
        std::size_t size_bytes = 0;
    };
    std::vector<Copy> copies_;              ///< what may be changed
    std::vector<std::uint64_t> untouched_;  ///< in the store, not yet used by the space
    std::vector<std::byte*> places_;        ///< by page of the pool, for what is read: Held::place
    std::vector<bool> taken_;               ///< by run of what is read
    bool is_restored_ = false;              ///< no run has been made since the state was taken
    bool listed_ = false;                   ///< `copies_` says what data_ says
    bool restores_all_ = false;             ///< the next restore() does
    std::vector<std::pair<std::uint64_t, std::byte>> originals_;
};

}  // namespace memattach::probe
