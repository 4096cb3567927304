/// Which sampled blocks still live, found out by looking at them.
///
/// Where a kind of allocation is seen in windows, the end of a block is hardly ever among what is seen. Its
/// memory can be read at any time, though, without a stop: first the moment its window is over, then at ages
/// that grow by an eighth, at last when the session ends. A block that has been freed, or has become another
/// one, has ended between that look and the one before.
///
///     the window's own end   a few ms later   …                       the session's end
///     (read in the shadow)   same?  same?  same?    same?       freed: ended half-way since the last look
///
/// What makes a block the same is in src/probe/block_judge.h: the allocator's own marks on what is free, an
/// object's type and reference count, and what the block holds. Both errors happen: a block that is reused
/// for another one of the same type at once looks the same until a look falls between the two, which is why
/// the first looks are close together; a table whose pointers are all exchanged between two looks seems to be
/// another.
///
/// Looking is reading (process_vm_readv(2), up to a hundred blocks a call): the target isn't stopped, and
/// nothing in it changes. A page that the kernel had put away is brought back by it; a page that was never
/// touched is answered from the kernel's page of zeros and stays unused. All that is read may be forged: it
/// is compared with bounds, and moves the figures of the profile at most.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <random>
#include <unordered_map>
#include <vector>

#include "memattach/probe/block_content.h"
#include "memattach/probe/sites.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

class BlockTypes;

class BlockWatch {
  public:
    /// More than the ledger follows (profile::Ledger::kMaxBlocks): what it dropped is dropped here later.
    static constexpr std::size_t kMostBlocks = 81'920;
    /// Of the time gone by, at most so much is spent here.
    static constexpr double kMostShare = 0.01;

    /// Looks are so far apart, as a share of the block's age.
    static constexpr double kGrowth = 0.12;

    /// `growth`: as kGrowth. `keeps_numbers`: a large block of numbers that have all changed is the same one
    /// (block_judge.h).
    BlockWatch(const process::Memory& memory, const python::Runtime& runtime, const SiteMap& sites,
               double growth = kGrowth, bool keeps_numbers = false);
    ~BlockWatch();
    BlockWatch(const BlockWatch&) = delete;
    BlockWatch& operator=(const BlockWatch&) = delete;

    /// A sampled block. Its free is seen as long as its window is open: looking begins behind it.
    void add(const trace::Alloc& alloc);
    /// What it held when its window was over; else that is what the first look finds.
    void set_content(std::uint64_t address, std::uint64_t window, const BlockContent& content);
    /// Its end was seen.
    void forget(std::uint64_t address) { blocks_.erase(address); }
    /// From now on frees of the window's blocks aren't seen. Window 0: the kind was armed until now.
    void window_over(trace::AllocKind kind, std::uint64_t window, std::uint64_t end_ns, std::uint64_t now_ns);

    [[nodiscard]] std::uint64_t due_ns() const;
    /// Looks at some of the blocks that are due; adds those that have ended, in no order.
    void look(std::uint64_t now_ns, std::vector<trace::Free>& ended);
    /// Looks at every block once more. Adds those that couldn't be looked at to `unseen`; those of them that
    /// no look has seen behind their window count as ended.
    void look_last(std::vector<trace::Free>& ended, std::vector<trace::Unseen>& unseen);

    /// The target runs another program now: its addresses mean nothing any more.
    void lose_target() { gone_ = true; }

    struct Figures {
        std::uint64_t looks = 0, system_calls = 0, ended = 0, pools = 0;
        std::uint64_t spent_ns = 0;
    };
    [[nodiscard]] const Figures& figures() const { return figures_; }
    [[nodiscard]] std::size_t size() const { return blocks_.size(); }

  private:
    struct Block {
        BlockContent content;
        std::uint64_t size_bytes = 0;
        std::uint64_t birth_ns = 0;
        std::uint64_t seen_ns = 0;  ///< when it was last known to live
        std::uint64_t window = 0;
        std::uint32_t serial = 0;
        std::int32_t pid = 0;
        std::uint16_t looks = 0;
        std::uint8_t type_index = 0, type_changes = 0, unsure = 0;
        trace::AllocKind kind = trace::AllocKind::malloc;
        bool looked_at = false;
    };
    using Blocks = std::unordered_map<std::uint64_t, Block>;
    struct Due {
        std::uint64_t time_ns = 0, address = 0;
        std::uint32_t serial = 0;
        bool operator>(const Due& other) const { return time_ns > other.time_ns; }
    };
    /// One block in a batch.
    struct Look {
        std::uint64_t address = 0;
        std::uint32_t first_piece = 0;
        bool has_next = false;
        std::array<std::uint64_t, BlockContent::kWords + 2> words{};  ///< in front, the block, next chunk
    };

    void start(std::uint64_t address, Block& block, std::uint64_t now_ns);
    void queue(std::uint64_t address, const Block& block, std::uint64_t now_ns, double gap_ns);
    [[nodiscard]] double gap_after(const Block& block, std::uint64_t now_ns);
    void thin();
    [[nodiscard]] double load(std::uint64_t now_ns) const;
    void look_at(std::vector<Look>& batch, std::uint64_t now_ns, std::vector<trace::Free>& ended);
    [[nodiscard]] bool read(std::vector<Look>& batch);
    enum class Verdict : std::uint8_t { lives, ended, unsure };
    [[nodiscard]] Verdict judge(const Look& look, Block& block);
    [[nodiscard]] Verdict ask_pool(std::uint64_t address);
    void end(Blocks::iterator block, std::uint64_t now_ns, std::vector<trace::Free>& ended);
    [[nodiscard]] bool has_chunks(const Block& block) const;

    const process::Memory& memory_;
    std::unique_ptr<BlockTypes> types_;
    base::Address always_there_;
    bool pymalloc_, mimalloc_, glibc_, objects_in_glibc_, split_references_, keeps_numbers_;
    double growth_;
    std::uint64_t pool_bytes_ = 0;  ///< 0: not known yet
    std::mt19937 random_{1};

    Blocks blocks_;
    std::unordered_map<std::uint64_t, std::vector<std::uint64_t>> open_;  ///< by window and kind
    std::priority_queue<Due, std::vector<Due>, std::greater<>> queue_;
    std::uint32_t serials_ = 0;
    unsigned thinned_ = 0;
    std::uint64_t start_ns_ = 0, not_before_ns_ = 0;
    bool gone_ = false;  ///< nothing of the target can be read any more
    std::vector<process::Memory::Piece> pieces_;
    std::vector<bool> failed_;
    std::vector<std::byte> pool_;
    Figures figures_;
};

}  // namespace memattach::probe
