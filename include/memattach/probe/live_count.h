/// How many blocks of each size live now, and how many of those weren't there at first.
///
/// Allocators keep books. Each of pymalloc's pools says how many of its blocks are in use (pool_scan.h), and
/// each of glibc's chunks whether it is (chunk_scan.h). Both are read from outside, without a stop: some
/// 0.4 µs a pool, 30 ms for 1 GB of small objects or 100 MB of chunks. The difference of two such counts is
/// what the heap has grown by, exactly:
///
///     now  =  at first  −  what has gone of that  +  new ones
///
/// What has gone since is learnt from some thousand blocks that are picked at random when the session begins,
/// and looked at again and again as sampled ones are (block_watch.h). So how many new blocks live is known to
/// a few per cent, whatever share of the allocations was seen; which lines they come from is what samples say
/// (profile/ledger_counted.cpp).
///
/// Pages that aren't there, or are swapped out, are left alone. Anything in the target may be forged or torn:
/// what doesn't bear the marks of a pool or a chunk isn't counted.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <random>
#include <unordered_map>
#include <vector>

#include "memattach/probe/block_watch.h"
#include "memattach/probe/chunk_scan.h"
#include "memattach/probe/pool_scan.h"
#include "memattach/probe/sites.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

class LiveCount {
  public:
    LiveCount(int pid, const process::Memory& memory, const python::Runtime& runtime, const SiteMap& sites);
    ~LiveCount();
    LiveCount(const LiveCount&) = delete;
    LiveCount& operator=(const LiveCount&) = delete;

    /// When the session begins.
    void start(std::uint64_t now_ns);
    /// UINT64_MAX where nothing is counted: other allocators, debug hooks (blocks are larger than they were
    /// asked for), heaps that are too large or swapped out.
    [[nodiscard]] std::uint64_t due_ns() const;
    /// Looks at picked blocks; counts once a second or, where heaps are large, less often.
    [[nodiscard]] std::optional<trace::LiveBlocks> on_time(std::uint64_t now_ns);
    /// At the end, the target still there.
    [[nodiscard]] std::optional<trace::LiveBlocks> last();
    void lose_target() { objects_ = chunks_ = false; }

  private:
    struct Counts {
        std::array<double, trace::LiveBlocks::kClasses> blocks{}, bytes{};
    };
    [[nodiscard]] Counts count(std::size_t picked);
    void pick_objects(const PoolCounts& counts);
    void pick_object(const SmallPool& pool);
    void pick_chunks();
    void watch(trace::AllocKind kind, std::size_t size_class, std::uint64_t address, std::uint64_t size_bytes,
               const BlockContent& content);
    [[nodiscard]] std::optional<trace::LiveBlocks> count_again();
    void take_ended();

    int pid_;
    const process::Memory& memory_;
    bool objects_, chunks_;        ///< can be counted
    bool counted_chunks_ = false;  ///< the last time: heaps in use can't always be followed to their ends
    bool large_ = true;            ///< so far large chunks could be counted each time
    PoolScan pools_;
    ChunkScan heaps_;
    BlockWatch watch_;
    std::mt19937 random_{2};
    std::vector<std::byte> pool_;
    std::vector<trace::Free> ended_;
    std::unordered_map<std::uint64_t, std::size_t> class_of_;  ///< of blocks that were picked and live
    Counts first_;
    std::array<double, trace::LiveBlocks::kClasses> picked_{}, gone_{};
    std::uint64_t count_due_ns_ = 0, counted_ns_ = 0;
};

}  // namespace memattach::probe
