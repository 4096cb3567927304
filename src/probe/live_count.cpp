#include "memattach/probe/live_count.h"

#include <algorithm>
#include <cstring>

#include "block_judge.h"
#include "memattach/base/clock.h"
#include "memattach/process/proc.h"

namespace memattach::probe {
namespace {

using trace::AllocKind;
using trace::LiveBlocks;

/// The share of the time that counting may take, and how often it is done at most.
constexpr double kMostShare = 0.02;
constexpr std::uint64_t kCountEveryNs = 1'000'000'000;
/// Looks at what was there at first are seldomer than those at new blocks: there's nothing to be learnt from
/// when exactly it went.
constexpr double kGrowth = 0.3;
constexpr std::uint64_t kWindow = 1;
/// Small objects that are picked, at least so many of a size; and chunks of each class.
constexpr std::size_t kPickedObjects = 2000, kLeastOfSize = 32, kPickedChunks = 40;
/// Blocks of a size that the threads' caches hold, by and large.
constexpr double kCached = 4;
constexpr std::uint64_t kLargestCached = 1040;

}  // namespace

LiveCount::LiveCount(int pid, const process::Memory& memory, const python::Runtime& runtime,
                     const SiteMap& sites)
    : pid_(pid),
      memory_(memory),
      objects_(sites.object_name == "pymalloc"),
      chunks_(sites.malloc_name == "glibc" && !sites.object_name.starts_with("malloc")),
      pools_(pid, memory),
      heaps_(memory, pid),
      watch_(memory, runtime, sites, kGrowth, true) {}

LiveCount::~LiveCount() = default;

/// `picked`: chunks of each class to pick.
LiveCount::Counts LiveCount::count(std::size_t picked) {
    const std::uint64_t start_ns = base::monotonic_ns();
    const std::vector<process::Mapping> maps = process::read_maps(pid_);
    Counts out;
    if (maps.empty()) lose_target();
    if (objects_) {
        const auto counts = pools_.count(maps);
        // To read what is swapped out would bring it back, at others' cost.
        if (counts && counts->swapped_out * 100 > counts->pools.size() + 100) lose_target();
        objects_ = objects_ && counts.has_value();
        for (std::size_t i = 0; objects_ && i < counts->blocks.size(); ++i) {
            out.blocks[i] = static_cast<double>(counts->blocks[i]);
            out.bytes[i] = 16 * static_cast<double>(i + 1) * out.blocks[i];
        }
        if (objects_ && picked > 0) pick_objects(*counts);
    }
    if (chunks_) {
        const auto counts = heaps_.count(maps, picked);
        counted_chunks_ = counts.has_value();
        large_ = large_ && counts.has_value() && counts->large;
        if (picked > 0) chunks_ = counted_chunks_;
        for (std::size_t i = LiveBlocks::kObjectClasses; counts && i < LiveBlocks::kClasses; ++i) {
            out.blocks[i] = static_cast<double>(counts->blocks[i]);
            out.bytes[i] = static_cast<double>(counts->bytes[i]);
        }
        if (counts && picked > 0) pick_chunks();
    }
    counted_ns_ = base::monotonic_ns();
    count_due_ns_ =
        counted_ns_ + std::max(kCountEveryNs, static_cast<std::uint64_t>(
                                                  static_cast<double>(counted_ns_ - start_ns) / kMostShare));
    return out;
}

void LiveCount::start(std::uint64_t now_ns) {
    if (!objects_ && !chunks_) return;
    first_ = count(kPickedChunks);
    watch_.window_over(AllocKind::object, kWindow, now_ns, now_ns);
    watch_.window_over(AllocKind::malloc, kWindow, now_ns, now_ns);
}

void LiveCount::watch(AllocKind kind, std::size_t size_class, std::uint64_t address, std::uint64_t size_bytes,
                      const BlockContent& content) {
    if (!class_of_.emplace(address, size_class).second) return;
    picked_[size_class] += 1;
    trace::Alloc block;
    block.time_ns = base::monotonic_ns();
    block.pid = pid_;
    block.address = address;
    block.size_bytes = size_bytes;
    block.window = kWindow;
    block.kind = kind;
    watch_.add(block);
    watch_.set_content(address, kWindow, content);
}

void LiveCount::pick_chunks() {
    for (std::size_t size_class = LiveBlocks::kObjectClasses; size_class < LiveBlocks::kClasses;
         ++size_class) {
        for (const Chunk& chunk : heaps_.picked(size_class)) {
            BlockContent content;
            content.count = BlockContent::words_of(chunk.bytes - 8);
            content.settled = 1;
            content.before = chunk.words[0];
            std::copy_n(chunk.words.begin() + 1, content.count, content.words.begin());
            watch(AllocKind::malloc, size_class, chunk.address, chunk.bytes - 8, content);
        }
    }
}

/// At random, large sizes more often: by bytes.
void LiveCount::pick_objects(const PoolCounts& counts) {
    std::array<std::vector<const SmallPool*>, LiveBlocks::kObjectClasses> pools;
    std::array<double, LiveBlocks::kObjectClasses> bytes{};
    double all_bytes = 0;
    for (const SmallPool& pool : counts.pools) {
        pools.at(pool.size_class).push_back(&pool);
        bytes.at(pool.size_class) += 16.0 * (pool.size_class + 1) * pool.in_use;
        all_bytes += 16.0 * (pool.size_class + 1) * pool.in_use;
    }
    for (std::size_t size_class = 0; size_class < pools.size(); ++size_class) {
        std::vector<double> up_to;  // blocks of the pools up to each
        for (const SmallPool* pool : pools[size_class])
            up_to.push_back((up_to.empty() ? 0 : up_to.back()) + pool->in_use);
        if (up_to.empty()) continue;
        const auto share = static_cast<std::size_t>(kPickedObjects * bytes[size_class] / all_bytes);
        const auto wanted = std::min(std::max(share, kLeastOfSize), static_cast<std::size_t>(up_to.back()));
        std::uniform_real_distribution<double> any(0, up_to.back());
        for (std::size_t i = 0; i < wanted; ++i) {
            const auto found = std::upper_bound(up_to.begin(), up_to.end() - 1, any(random_));
            pick_object(*pools[size_class][static_cast<std::size_t>(found - up_to.begin())]);
        }
    }
}

/// A random one of those in use.
void LiveCount::pick_object(const SmallPool& pool) {
    const auto copy = read_pool(memory_, pool.address, pools_.pool_bytes(), pool_);
    auto free = copy ? free_blocks(*copy) : std::nullopt;
    const std::uint64_t carved = copy ? copy->first.carved() : 0;
    if (!free || free->size() >= carved || copy->first.size_class != pool.size_class) return;
    std::sort(free->begin(), free->end());
    auto nth = std::uniform_int_distribution<std::uint64_t>(0, carved - free->size() - 1)(random_);
    std::uint64_t offset = sizeof(PoolHeader);
    for (auto next = free->begin();; offset += copy->first.block_bytes()) {
        if (next != free->end() && *next == offset) {
            ++next;
        } else if (nth-- == 0) {
            break;
        }
    }
    BlockContent content;
    content.count = BlockContent::words_of(copy->first.block_bytes());
    content.settled = 1;
    std::memcpy(content.words.data(), pool_.data() + offset, 8 * content.count);
    watch(AllocKind::object, pool.size_class, pool.address + offset, copy->first.block_bytes(), content);
}

void LiveCount::take_ended() {
    for (const trace::Free& end : ended_) {
        const auto found = class_of_.find(end.address);
        if (found == class_of_.end()) continue;
        gone_[found->second] += 1;
        class_of_.erase(found);
    }
    ended_.clear();
}

std::uint64_t LiveCount::due_ns() const {
    return objects_ || chunks_ ? std::min(count_due_ns_, watch_.due_ns()) : ~std::uint64_t{0};
}

std::optional<LiveBlocks> LiveCount::on_time(std::uint64_t now_ns) {
    watch_.look(now_ns, ended_);
    take_ended();
    if (now_ns < count_due_ns_) return std::nullopt;
    return count_again();
}

std::optional<LiveBlocks> LiveCount::last() {
    if (!objects_ && !chunks_) return std::nullopt;
    std::vector<trace::Unseen> unseen;
    watch_.look_last(ended_, unseen);
    if (!unseen.empty()) return std::nullopt;
    take_ended();
    return count_again();
}

std::optional<LiveBlocks> LiveCount::count_again() {
    LiveBlocks out;
    const Counts now = count(0);
    if (!objects_ && !counted_chunks_) return std::nullopt;
    out.time_ns = counted_ns_;
    out.pid = pid_;
    out.objects = objects_;
    out.chunks = counted_chunks_;
    out.large = counted_chunks_ && large_;
    for (std::size_t i = 0; i < LiveBlocks::kClasses; ++i) {
        const double share = picked_[i] > 0 ? gone_[i] / picked_[i] : 0.5;
        const double likely = (gone_[i] + 1) / (picked_[i] + 2);  // never quite 0 or 1
        const double old = first_.blocks[i];
        out.blocks[i] = std::max(0.0, now.blocks[i] - old * (1 - share));
        out.bytes[i] = std::max(0.0, now.bytes[i] - first_.bytes[i] * (1 - share));
        out.variance[i] = old * old * likely * (1 - likely) / (picked_[i] + 2);
        if (i >= LiveBlocks::kObjectClasses && i <= LiveBlocks::chunk_class(kLargestCached))
            out.variance[i] += kCached * kCached;
    }
    return out;
}

}  // namespace memattach::probe
