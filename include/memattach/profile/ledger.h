/// The books of sampled memory: which sampled blocks live, and what each cell (a stack, see cells.h) has
/// allocated, freed and kept, over time.
///
///          Alloc ──▶ block ──┬──▶ Free of its address                    freed, its lifetime is known
///                    (lives) ├──▶ Alloc of its address                   freed, nobody saw when
///                            ├──▶ munmap of a part                       the rest lives on
///                            └──▶ nothing seen                           live
///
/// The end of every sampled block is told: where its kind is armed all the time when it is freed, where it
/// goes by windows when a look finds it gone (probe::BlockWatch), which may be some time later: free.time_ns
/// is then in the middle between that look and the one before. What could not be looked at any more when the
/// session ended is told as well (trace::Unseen), and said to be unconfirmed.
///
/// How many blocks of each size live is known from the allocators' own books, most of the time
/// (trace::LiveBlocks): of these samples say only which cells they are of (ledger_counted.h).
///
/// Live bytes of kinds that are armed all the time change with every event. A block that was seen in a window
/// stands for many others at many times, so that live bytes of such blocks are taken once a second or so,
/// from those that have outlived the first looks; the others count with the time that they lived.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "memattach/profile/cells.h"
#include "memattach/profile/estimate.h"
#include "memattach/profile/history.h"
#include "memattach/trace/events.h"

namespace memattach::profile {

/// What the ledger knows of one cell, or of a row made of several.
struct MemoryFigures {
    SampleSum alloc;
    SampleSum live;
    SampleSum growth;  ///< bytes per minute, slope of live bytes over the session
    SampleSum count;
    SampleSum temporary;
    double unconfirmed = 0;  ///< part of live: not looked at at the end
    /// Part of growth, of sizes whose blocks are counted; and what these counts grew by in the last quarter
    /// of the session, bytes per minute as well.
    double counted_growth = 0, late_growth = 0;
    /// Of these sizes: how many sampled blocks, anybody's, are expected to seem alive and not to be.
    double mistaken = 0;
    double peak = 0;
    double peak_variance = 0;
    double slot_ns = 0;
    TimeSlots::Values live_in_slot{};       ///< mean live bytes over each slot
    TimeSlots::Values born_in_slot{};       ///< sampled blocks
    TimeSlots::Values surviving_of_slot{};  ///< how many of those are live at the end

    MemoryFigures& operator+=(const MemoryFigures& other);
};

class Ledger {
  public:
    /// Live sampled blocks that are kept at most. Past it one half is dropped (trace::thinning_bits), and the
    /// others stand for twice as much: figures stay true, intervals grow.
    static constexpr std::size_t kMaxBlocks = std::size_t{1} << 16;

    explicit Ledger(std::uint64_t start_ns, std::size_t max_blocks = kMaxBlocks);

    void add(const trace::Alloc& alloc, CellId cell);
    void add(const trace::Free& free);
    void add(const trace::Window& window);
    void add(const trace::Unseen& unseen);
    void add(const trace::LiveBlocks& blocks);

    [[nodiscard]] std::uint64_t unknown_frees() const { return unknown_frees_; }
    /// Of all lines, and of nobody's as far as that is counted.
    [[nodiscard]] double live_now() const { return total_live_ + uncharged_; }
    [[nodiscard]] std::size_t blocks() const { return blocks_.size(); }
    [[nodiscard]] const AllWindowTimes& window_times() const { return times_; }

    /// The figures of every cell that has any, as of `end_ns` (or the last event, where that is later).
    struct Result {
        std::vector<std::pair<CellId, MemoryFigures>> cells;
        double duration_ns = 0;
        /// Live bytes of counted sizes of which no sample lives: nobody's.
        double uncharged_live = 0;
        bool is_counted = false;  ///< all that lives is, but for mappings
    };
    [[nodiscard]] Result evaluate(std::uint64_t end_ns) const;

  private:
    /// So old a windowed block is before it counts as one of those that stay for a while.
    static constexpr double kYoungNs = 100e6;

    struct Key {
        std::int32_t pid;
        std::uint64_t address;
        auto operator<=>(const Key&) const = default;
    };
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
        bool unseen;
        /// How likely one of a window lives where its end hasn't been seen, as far as that is known from the
        /// place: where its line had n blocks before, all of which ended, one in n + 1.
        double may_live = 1;
        [[nodiscard]] double variance() const { return weight * weight * (1 - kept); }
        /// Its end may not have been seen. Of large blocks it isn't watched for, however many are seen.
        [[nodiscard]] bool is_estimated() const { return window != 0 || kind == trace::AllocKind::large; }
    };
    /// What an account's counted blocks that lived briefly come to, of one size class.
    struct Brief {
        std::uint32_t size_class = 0;
        double block_ns = 0, byte_ns = 0;
    };
    struct Account {
        CellId cell{};
        std::int32_t pid = 0;
        std::vector<Brief> brief;
        SampleSum alloc, count, temporary;
        double windowed_alloc = 0;  ///< of `alloc`: what was seen in windows
        double live = 0;            ///< blocks that are watched without a break
        double windowed_live = 0;   ///< the others, as of the last estimate
        double live_variance = 0, windowed_variance = 0;
        double at_peak = 0, variance_at_peak = 0;
        std::uint64_t peak = 0;       ///< number of the peak that `at_peak` belongs to
        double changed_ns = 0;        ///< up to when live_ns is filled
        TimeSlots::Values live_ns{};  ///< bytes × ns in each slot
        TimeSlots::Values born{};
        /// Of ended blocks: what the slope of live bytes is made of, and its variance.
        double dead_v = 0, dead_u = 0, dead_vv = 0, dead_uv = 0, dead_uu = 0;
        SampleSum windowed_dead_v, windowed_dead_u;
        /// Bytes × ns of windowed blocks that ended before an estimate counted them, since the last one, as
        /// many as they stand for. Over the time gone by that is what such blocks hold on average: part of
        /// the history and the peak, not of the live blocks at the end.
        double brief_byte_ns = 0;
    };
    /// What one account's live blocks come to.
    struct Living {
        SampleSum live, growth;
        double unconfirmed = 0;
        bool counted = false;  ///< some of it is
        double counted_growth = 0, late_growth = 0, mistaken = 0;
        double windowed = 0;  ///< live bytes of blocks that were seen in windows
        double sampled = 0;   ///< the same by the samples alone
        TimeSlots::Values surviving{};
    };
    /// The blocks that are counted in one process.
    struct Counted {
        using Classes = std::array<double, trace::LiveBlocks::kClasses>;
        trace::LiveBlocks counted;
        double counted_ns = 0;  ///< since the start
        /// Integrals over time of counted bytes, and of those times time: what the slope is made of.
        Classes area{}, moment{};
        unsigned counts = 0;
        struct Earlier {
            double at_ns = 0;  ///< since the start
            Classes bytes{};
        };
        std::vector<Earlier> earlier;  ///< at most kMostEarlier counts, evenly over the session
        static constexpr std::size_t kMostEarlier = 64;
        [[nodiscard]] double slope(std::size_t size_class, double now_ns) const;
        /// Since a moment, bytes per minute.
        [[nodiscard]] double slope_since(std::size_t size_class, double from_ns) const;
        std::array<SampleSum, trace::LiveBlocks::kClasses> brief;  ///< block × ns of those that lived briefly
    };
    class CountedParts;

    std::uint32_t account_of(CellId cell, std::int32_t pid);
    /// The class in which blocks like this one are counted; nothing where they aren't.
    [[nodiscard]] std::optional<std::uint32_t> counted_class(const Block& block) const;
    [[nodiscard]] std::optional<std::uint32_t> class_of(const Block& block) const;
    /// Books a block that lived briefly where its kind is counted.
    bool end_counted(const Block& block, double weight, double age_ns);
    [[nodiscard]] double since_start(std::uint64_t time_ns) const;
    void advance(std::uint64_t time_ns);
    void change(Account& account, double continuous, double windowed, double variance = 0);
    /// Books the end of `part` of a block. `seen`: at `end_ns` since the start, or about that time; else the
    /// address was simply given away again.
    void end_block(const Block& block, bool seen, double part, double end_ns);
    /// How many sampled blocks an account had at an address before, of late.
    double earlier_here(std::uint32_t account, std::uint64_t address);
    void erase(const Key& key);
    void thin();
    void unmap(const trace::Free& free);
    void estimate_windowed();
    void add_mistaken(const Account& account, Living& living) const;
    [[nodiscard]] std::vector<Living> living(double now_ns, const TimeSlots& slots, double& uncharged) const;
    [[nodiscard]] MemoryFigures figures_of(const Account& account, Living&& living, double now_ns,
                                           const TimeSlots& slots, unsigned doublings) const;

    std::uint64_t start_ns_;
    std::size_t max_blocks_;
    double now_ns_ = 0;  ///< since the start
    TimeSlots slots_;
    std::vector<Account> accounts_;
    std::vector<std::uint32_t> account_by_cell_;
    std::unordered_map<Key, Block, KeyHash> blocks_;
    std::unordered_map<Key, std::uint32_t, KeyHash> births_;  ///< by account and address
    std::map<Key, std::uint64_t> mappings_;    ///< sizes of the blocks that munmap may end in parts
    std::map<std::int32_t, Counted> counted_;  ///< by process
    std::uint64_t unknown_frees_ = 0;
    std::uint64_t thinned_ = 0;

    double total_live_ = 0;
    double uncharged_ = 0;  ///< as of the last estimate
    double peak_live_ = 0;
    std::uint64_t peak_ = 0;

    AllWindowTimes times_;
    bool any_windowed_ = false;
    double estimated_ns_ = 0;
};

}  // namespace memattach::profile
