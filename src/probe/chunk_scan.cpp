#include "memattach/probe/chunk_scan.h"

#include <algorithm>
#include <cstring>

namespace memattach::probe {
namespace {

constexpr std::size_t kBuffer = 256 << 10;
constexpr std::uint64_t kFlags = 7, kPreviousInUse = 1, kIsMapped = 2;
/// HEAP_MAX_SIZE of malloc/arena.c: heaps of arenas begin at multiples of it.
constexpr std::uint64_t kHeapAlignment = 64 << 20;
/// struct heap_info (pages of 4 KB, 2.26–2.42): the arena, the heap before, size, …
struct HeapInfo {
    std::uint64_t arena, previous, size;
};
constexpr std::array<std::uint64_t, 2> kHeapInfoBytes = {32, 48};
/// struct malloc_state of 2.27 and later, which lies in its arena's first heap
constexpr std::uint64_t kArenaBytes = 2200;

std::uint64_t align(std::uint64_t address) {
    return (address + 15) / 16 * 16;
}

}  // namespace

/// So that a chunk's head can be read at `address`.
bool ChunkScan::load(std::uint64_t address, std::uint64_t end) {
    const std::uint64_t wanted = std::min(address + sizeof(Chunk::words) + 8, end);
    if (address >= loaded_ && wanted <= loaded_end_) return true;
    if (buffer_.size() == 0) buffer_ = base::PageBuffer(kBuffer);
    const std::size_t count = std::min<std::uint64_t>(kBuffer, end - address);
    if (!memory_.read_exactly(base::Address(address), buffer_.span().first(count))) return false;
    loaded_ = address;
    loaded_end_ = address + count;
    return true;
}

/// A reservoir: each of the `seen` so far is kept with the same probability.
void ChunkScan::pick(const Chunk& chunk, std::uint64_t seen) {
    std::vector<Chunk>& kept = picked_[trace::LiveBlocks::chunk_class(chunk.bytes)];
    if (kept.size() < wanted_) {
        kept.push_back(chunk);
    } else if (const std::uint64_t at = random_() % seen; at < wanted_) {
        kept[at] = chunk;
    }
}

/// Through its chunks, the last of which is the free rest of the heap.
bool ChunkScan::walk(const Heap& heap, ChunkCounts& counts) {
    loaded_ = loaded_end_ = 0;
    std::optional<Chunk> before;
    for (std::uint64_t at = heap.from; at < heap.to;) {
        if (at + 16 > heap.to || !load(at, heap.to)) return false;
        Chunk chunk;
        chunk.address = at + 16;
        std::memcpy(chunk.words.data(), buffer_.data() + (at - loaded_) + 8,
                    std::min<std::uint64_t>(sizeof chunk.words, loaded_end_ - at - 8));
        chunk.bytes = chunk.words[0] & ~kFlags;
        if (chunk.bytes < 16 || chunk.bytes % 16 != 0 || chunk.bytes > heap.to - at ||
            (chunk.words[0] & kIsMapped) != 0)
            return false;
        if (before && (chunk.words[0] & kPreviousInUse) != 0) {
            const std::size_t size_class = trace::LiveBlocks::chunk_class(before->bytes);
            ++counts.blocks[size_class];
            counts.bytes[size_class] += before->bytes;
            if (wanted_ > 0) pick(*before, counts.blocks[size_class]);
        }
        before.reset();
        if (chunk.bytes >= 32 && chunk.bytes <= trace::LiveBlocks::kLargestChunk) before = chunk;
        at += chunk.bytes;
    }
    return true;
}

std::optional<ChunkScan::Heap> ChunkScan::find_heap(const process::Mapping& mapping) const {
    if (!mapping.readable || !mapping.writable || mapping.shared || mapping.inode != 0) return std::nullopt;
    const std::uint64_t start = mapping.start.value();
    if (mapping.path == "[heap]") return Heap{align(start), mapping.end.value()};
    if (!mapping.path.empty() || start % kHeapAlignment != 0) return std::nullopt;
    const auto info = memory_.read<HeapInfo>(mapping.start);
    if (!info || info->size > mapping.size_bytes() || info->size < kArenaBytes) return std::nullopt;
    for (const std::uint64_t head : kHeapInfoBytes) {
        if (info->arena % kHeapAlignment != head) continue;
        const bool is_first = info->arena == start + head;
        return Heap{is_first ? align(info->arena + kArenaBytes) : start + head, start + info->size};
    }
    return std::nullopt;
}

std::optional<ChunkCounts> ChunkScan::count(const std::vector<process::Mapping>& maps, std::size_t picked) {
    std::vector<Heap> heaps;
    std::uint64_t bytes = 0;
    for (const process::Mapping& mapping : maps) {
        const auto heap = find_heap(mapping);
        if (!heap) continue;
        heaps.push_back(*heap);
        bytes += heap->to - heap->from;
    }
    if (heaps.empty() || bytes > kMostBytes) return std::nullopt;
    wanted_ = picked;
    picked_ = {};
    constexpr int kTries = 3;
    ChunkCounts counts;
    for (const Heap& heap : heaps) {
        bool done = false;
        for (int i = 0; i < kTries && !done; ++i) {
            const ChunkCounts counted = counts;
            const Picked kept = picked_;
            done = walk(heap, counts);
            if (done) break;
            counts = counted;
            picked_ = kept;
        }
        if (!done) return std::nullopt;
    }
    return counts;
}

}  // namespace memattach::probe
