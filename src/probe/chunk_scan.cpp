#include "memattach/probe/chunk_scan.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "memattach/process/proc.h"

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

constexpr std::uint64_t kPage = 4096;
/// M_MMAP_THRESHOLD is 128 KB at least, unless a program has set it.
constexpr std::uint64_t kLeastMapped = 64 << 10;
// /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst: a word a page
constexpr std::uint64_t kPresent = std::uint64_t{1} << 63, kSwapped = std::uint64_t{1} << 62;

std::uint64_t align(std::uint64_t address) {
    return (address + 15) / 16 * 16;
}

/// The whole mapping; since 2.43 without the 16 bytes of its head.
bool is_mapped_size(std::uint64_t bytes) {
    return bytes % kPage == 0 || bytes % kPage == kPage - 16;
}

bool is_plain(const process::Mapping& mapping) {
    return mapping.readable && mapping.writable && !mapping.shared && mapping.inode == 0;
}

}  // namespace

ChunkScan::ChunkScan(const process::Memory& memory, int pid) : memory_(memory), pid_(pid) {
    if (pid != 0) pagemap_.reset(::open(fmt::format("/proc/{}/pagemap", pid).c_str(), O_RDONLY | O_CLOEXEC));
}

/// So that a chunk's head can be read at `address`. `anew`: whatever has been read already.
bool ChunkScan::load(std::uint64_t address, std::uint64_t end, bool anew) {
    const std::uint64_t wanted = std::min(address + sizeof(Chunk::words) + 8, end);
    if (!anew && address >= loaded_ && wanted <= loaded_end_) return true;
    if (buffer_.size() == 0) buffer_ = base::PageBuffer(kBuffer);
    const std::size_t count = std::min<std::uint64_t>(kBuffer, end - address);
    const std::size_t got = memory_.read_up_to(base::Address(address), buffer_.span().first(count));
    loaded_ = address;
    loaded_end_ = address + got;
    return wanted <= loaded_end_;  // a heap may have shrunk since
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

std::optional<Chunk> ChunkScan::chunk_at(std::uint64_t at, const Heap& heap, bool anew) {
    if (at + 16 > heap.to || !load(at, heap.to, anew)) return std::nullopt;
    Chunk chunk;
    chunk.address = at + 16;
    std::memcpy(chunk.words.data(), buffer_.data() + (at - loaded_) + 8,
                std::min<std::uint64_t>(sizeof chunk.words, loaded_end_ - at - 8));
    chunk.bytes = chunk.words[0] & ~kFlags;
    const bool is_one = chunk.bytes >= 16 && chunk.bytes % 16 == 0 && chunk.bytes <= heap.to - at &&
                        (chunk.words[0] & kIsMapped) == 0;
    return is_one ? std::optional(chunk) : std::nullopt;
}

/// Through its chunks, the last of which is the free rest of the heap. Where that leads astray a chunk on the
/// way was merged or split meanwhile: from some chunks back it is tried again, from more of them each time.
bool ChunkScan::walk(Heap heap, ChunkCounts& counts) {
    constexpr std::size_t kRemembered = 1024, kFirstBack = 1;
    constexpr int kMostRetries = 64;
    loaded_ = loaded_end_ = 0;
    std::deque<Chunk> way;  // the last ones, in use or not, none of them counted
    const auto count_first = [&] {
        const std::uint64_t next_head = way.size() > 1 ? way[1].words[0] : 0;
        const Chunk& chunk = way.front();
        if ((next_head & kPreviousInUse) != 0 && chunk.bytes >= 32 &&
            chunk.bytes <= trace::LiveBlocks::kLargestChunk)
            add(chunk, counts);
        way.pop_front();
    };
    int retries = 0;
    std::size_t back = kFirstBack;
    std::uint64_t farthest = heap.from;
    bool anew = false;
    for (std::uint64_t at = heap.from; at < heap.to;) {
        const auto chunk = chunk_at(at, heap, std::exchange(anew, false));
        if (!chunk) {
            if (++retries > kMostRetries || way.size() < 2) return false;
            // It grows and shrinks with what is at its end.
            heap.to = end_of(heap).value_or(heap.to);
            if (at == heap.to) break;
            if (heap.to - heap.from > kMostBytes) return false;
            if (at > farthest + kBuffer) back = kFirstBack;  // another place
            farthest = std::max(farthest, at);
            for (std::size_t i = 0; i < back && way.size() > 1; ++i) way.pop_back();
            back = std::min(2 * back, kRemembered);
            at = way.back().address - 16;
            way.pop_back();
            anew = true;
            continue;
        }
        way.push_back(*chunk);
        if (way.size() > kRemembered) count_first();
        at += chunk->bytes;
    }
    while (way.size() > 1) count_first();
    return true;
}

void ChunkScan::add(const Chunk& chunk, ChunkCounts& counts) {
    const std::size_t size_class = trace::LiveBlocks::chunk_class(chunk.bytes);
    ++counts.blocks[size_class];
    counts.bytes[size_class] += chunk.bytes;
    if (wanted_ > 0) pick(chunk, counts.blocks[size_class]);
}

/// A chunk that is mapped alone begins where a page does, with 0 (no memory is left in front of it) and its
/// size, the mapping's, with one flag. False where there are too many pages to look at.
bool ChunkScan::find_mapped(const process::Mapping& mapping, ChunkCounts& counts) {
    constexpr std::size_t kAtOnce = 256;
    using Head = std::array<std::uint64_t, 10>;
    std::array<std::uint64_t, kAtOnce> present{};
    std::array<Head, kAtOnce> heads{};
    std::vector<process::Memory::Piece> pieces;
    const std::uint64_t end = mapping.end.value();
    for (std::uint64_t at = mapping.start.value(); at < end;) {
        const std::size_t pages = std::min<std::uint64_t>(kAtOnce, (end - at) / kPage);
        if (pages == 0) break;
        present.fill(kPresent);
        if (pagemap_.is_open() &&
            ::pread(pagemap_.get(), present.data(), 8 * pages, static_cast<off_t>(at / kPage * 8)) < 0)
            pagemap_.reset();
        pieces.clear();
        bytes_passed_ += pages * kPage;
        for (std::size_t i = 0; i < pages; ++i) {
            heads[i] = {};
            if ((present[i] & kSwapped) != 0) return false;
            if ((present[i] & kPresent) == 0) continue;
            pieces.push_back({base::Address(at + i * kPage), std::as_writable_bytes(std::span(heads[i]))});
        }
        for (std::size_t i = 0; i < pieces.size();)
            i += memory_.read_pieces(std::span(pieces).subspan(i)) + 1;
        pages_read_ += pieces.size();
        if (pages_read_ > kMostPages || bytes_passed_ > kMostMapped) return false;
        std::uint64_t next = at;  // behind the last chunk that was found
        for (std::size_t i = 0; i < pages; ++i) {
            const std::uint64_t here = at + i * kPage;
            const Head& head = heads[i];
            const std::uint64_t bytes = head[1] & ~kFlags;
            if (here < next || head[0] != 0 || (head[1] & kFlags) != kIsMapped || !is_mapped_size(bytes) ||
                bytes < kLeastMapped || bytes > std::min(end - here, trace::LiveBlocks::kLargestChunk))
                continue;
            Chunk chunk;
            chunk.address = here + 16;
            chunk.bytes = bytes;
            std::copy_n(head.begin() + 1, chunk.words.size(), chunk.words.begin());
            add(chunk, counts);
            next = here + (bytes + kPage - 1) / kPage * kPage;
        }
        at = std::max(at + pages * kPage, next);
    }
    return true;
}

/// Where it ends by now.
std::optional<std::uint64_t> ChunkScan::end_of(const Heap& heap) const {
    if (heap.info == 0) {
        const std::vector<process::Mapping> maps = process::read_maps(pid_);
        const process::Mapping* mapping = process::find_mapping(maps, base::Address(heap.from));
        return mapping == nullptr ? std::nullopt : std::optional(mapping->end.value());
    }
    const auto info = memory_.read<HeapInfo>(base::Address(heap.info));
    if (!info || info->size > kHeapAlignment || info->size < kArenaBytes) return std::nullopt;
    return heap.info + info->size;
}

std::optional<ChunkScan::Heap> ChunkScan::find_heap(const process::Mapping& mapping) const {
    if (!is_plain(mapping)) return std::nullopt;
    const std::uint64_t start = mapping.start.value();
    if (mapping.path == "[heap]") return Heap{align(start), mapping.end.value(), 0};
    if (!mapping.path.empty() || start % kHeapAlignment != 0) return std::nullopt;
    const auto info = memory_.read<HeapInfo>(mapping.start);
    if (!info || info->size > mapping.size_bytes() || info->size < kArenaBytes) return std::nullopt;
    for (const std::uint64_t head : kHeapInfoBytes) {
        if (info->arena % kHeapAlignment != head) continue;
        const bool is_first = info->arena == start + head;
        return Heap{is_first ? align(info->arena + kArenaBytes) : start + head, start + info->size, start};
    }
    return std::nullopt;
}

std::optional<ChunkCounts> ChunkScan::count(const std::vector<process::Mapping>& maps, std::size_t picked) {
    std::vector<Heap> heaps;
    std::vector<const process::Mapping*> others;
    std::uint64_t bytes = 0;
    for (const process::Mapping& mapping : maps) {
        const auto heap = find_heap(mapping);
        if (!heap) {
            if (is_plain(mapping) && mapping.path.empty()) others.push_back(&mapping);
            continue;
        }
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
    pages_read_ = 0;
    bytes_passed_ = 0;
    counts.large = std::all_of(others.begin(), others.end(), [&](const process::Mapping* mapping) {
        return find_mapped(*mapping, counts);
    });
    if (counts.large) return counts;
    for (std::size_t i = trace::LiveBlocks::chunk_class(trace::LiveBlocks::kLargestInHeap);
         i < trace::LiveBlocks::kClasses; ++i) {
        counts.blocks[i] = counts.bytes[i] = 0;
        picked_[i].clear();
    }
    return counts;
}

}  // namespace memattach::probe
