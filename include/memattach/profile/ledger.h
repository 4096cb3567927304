/// The books of sampled memory: which sampled blocks live, and what each cell (a stack, see cells.h) has
/// allocated, freed and kept, over time.
///
///          Alloc ──▶ block ──┬──▶ Free of its address                    freed, its lifetime is known
///                    (lives) ├──▶ Alloc of its address                   freed, nobody saw when
///                            ├──▶ munmap of a part                       the rest lives on
///                            └──▶ nothing seen, and its kind was armed
///                                   all the time since                   live
///                                   in windows only                      live with some probability
///
/// The last is the difficult one. A kind that goes by windows shows a block's end only where that falls into
/// an armed stretch. How long blocks of the same stack live is known from the ends that were seen
/// (lifetimes.h); from that follows how likely it is that this one still does. Its weight is multiplied by
/// that probability, so that live bytes are what is expected to be live, and what comes from blocks that
/// weren't watched throughout is told apart ("not seen freed") from the rest ("seen live").
///
/// Live bytes of kinds that are armed all the time change with every event; those of windowed kinds are
/// estimated anew once a second or so, between events.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "memattach/profile/cells.h"
#include "memattach/profile/estimate.h"
#include "memattach/profile/history.h"
#include "memattach/profile/lifetimes.h"
#include "memattach/trace/events.h"

namespace memattach::profile {

/// What the ledger knows of one cell, or of a row made of several.
struct MemoryFigures {
    SampleSum alloc;
    SampleSum live;
    SampleSum growth;  ///< bytes per minute, slope of live bytes over the session
    SampleSum count;
    SampleSum temporary;
    double unconfirmed = 0;  ///< part of live
    double peak = 0;
    double peak_variance = 0;
    double slot_ns = 0;
    TimeSlots::Values live_in_slot{};       ///< mean live bytes over each slot
    TimeSlots::Values born_in_slot{};       ///< sampled blocks
    TimeSlots::Values surviving_of_slot{};  ///< how many of those are live at the end, by expectation
    LifeTable lifetimes;
    /// Sampled blocks whose end could have gone unseen, and the chance that, had they all ended, none of it
    /// would have been seen.
    double unwatched = 0;
    double all_missed = 1;

    MemoryFigures& operator+=(const MemoryFigures& other);
};

class Ledger {
  public:
    /// Live sampled blocks that are kept at most. Past it every second one is dropped, and the others stand
    /// for twice as much: figures stay true, intervals grow.
    static constexpr std::size_t kMaxBlocks = std::size_t{1} << 18;

    explicit Ledger(std::uint64_t start_ns, std::size_t max_blocks = kMaxBlocks);

    void add(const trace::Alloc& alloc, CellId cell);
    void add(const trace::Free& free);
    void add(const trace::Window& window);

    [[nodiscard]] std::uint64_t unknown_frees() const { return unknown_frees_; }
    [[nodiscard]] double live_now() const { return total_live_; }
    [[nodiscard]] std::size_t blocks() const { return blocks_.size(); }
    [[nodiscard]] const AllWindowTimes& window_times() const { return times_; }

    /// The figures of every cell that has any, as of `end_ns` (or the last event, where that is later).
    struct Result {
        std::vector<std::pair<CellId, MemoryFigures>> cells;
        double duration_ns = 0;
    };
    [[nodiscard]] Result evaluate(std::uint64_t end_ns) const;

  private:
    struct Key {
        std::int32_t pid;
        std::uint64_t address;
        auto operator<=>(const Key&) const = default;
    };
    using WindowKey = std::pair<std::uint64_t, std::int32_t>;  ///< id, pid
    struct KeyHash {
        std::size_t operator()(const Key& key) const;
    };
    struct Block {
        std::uint32_t account;
        trace::AllocKind kind;
        std::uint64_t size;
        double weight;  ///< bytes that it stands for now
        double kept;    ///< P(it was kept), windows apart
        std::uint64_t window;
        std::uint64_t birth_ns;
        std::uint64_t closed_ns;  ///< when watching it without a break ended; 0: it hasn't
        [[nodiscard]] double variance() const { return weight * weight * (1 - kept); }
    };
    struct Account {
        CellId cell{};
        SampleSum alloc, count, temporary;
        double live = 0;           ///< blocks that are watched without a break
        double windowed_live = 0;  ///< the others, as of the last estimate
        double live_variance = 0, windowed_variance = 0;
        double at_peak = 0, variance_at_peak = 0;
        std::uint64_t peak = 0;       ///< number of the peak that `at_peak` belongs to
        double changed_ns = 0;        ///< up to when live_ns is filled
        TimeSlots::Values live_ns{};  ///< bytes × ns in each slot
        TimeSlots::Values born{};
        std::array<LifeTable, 2> lifetimes;  ///< small objects apart from the rest
        /// Of ended blocks: what the slope of live bytes is made of, and its variance (see slope_of_dead).
        double dead_v = 0, dead_u = 0, dead_vv = 0, dead_uv = 0, dead_uu = 0;
        /// Bytes × ns of windowed blocks that ended in their own window, since the last estimate, as many as
        /// they stand for. Over the time gone by that is what such blocks hold on average: part of the
        /// history and the peak, not of the live blocks at the end.
        double brief_byte_ns = 0;
        double late_variance = 0;  ///< bytes², from the ends that were seen behind the block's own window
    };
    /// What is estimated of one account's blocks.
    struct Estimate {
        SampleSum live, growth, temporary;
        double windowed_live = 0, unconfirmed = 0, unwatched = 0, all_missed = 1;
        TimeSlots::Values surviving{};
        std::array<LifeTable, 2> lifetimes;
    };

    struct Kind {
        std::map<WindowKey, std::uint64_t> recent_ends;  ///< end_ns
        std::map<WindowKey, std::vector<Key>> open;      ///< the blocks of windows whose end isn't known yet
        std::vector<std::uint64_t>
            broken_at_ns;  ///< when an unbroken stretch of watching gave way to windows
        ArmedByAge armed;
        bool windowed = false;
    };

    std::uint32_t account_of(CellId cell);
    [[nodiscard]] double since_start(std::uint64_t time_ns) const;
    void advance(std::uint64_t time_ns);
    void change(Account& account, double continuous, double windowed, double variance = 0);
    void end_block(const Block& block, bool seen, double part);
    void erase(const Key& key);
    void thin();
    void unmap(const trace::Free& free);
    void close(Kind& kind, const WindowKey& window, std::uint64_t end_ns);
    void estimate_windowed();
    [[nodiscard]] std::uint64_t closed_at(const Block& block) const;
    [[nodiscard]] std::vector<Estimate> estimate(double now_ns, const TimeSlots& slots, int rounds) const;
    [[nodiscard]] MemoryFigures figures_of(const Account& account, Estimate&& estimate, double now_ns,
                                           const TimeSlots& slots, unsigned doublings) const;

    std::uint64_t start_ns_;
    std::size_t max_blocks_;
    double now_ns_ = 0;  ///< since the start
    TimeSlots slots_;
    std::vector<Account> accounts_;
    std::vector<std::uint32_t> account_by_cell_;
    std::unordered_map<Key, Block, KeyHash> blocks_;
    std::map<Key, std::uint64_t> mappings_;  ///< sizes of the blocks that munmap may end in parts
    std::uint64_t unknown_frees_ = 0;
    std::uint64_t thinned_ = 0;

    double total_live_ = 0;
    double peak_live_ = 0;
    std::uint64_t peak_ = 0;

    AllWindowTimes times_;
    std::array<Kind, kAllocKinds> kinds_;
    bool any_windowed_ = false;
    double estimated_ns_ = 0;
};

}  // namespace memattach::profile
