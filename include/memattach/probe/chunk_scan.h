/// Goes through the chunks of glibc's malloc: the main heap, the heaps of the threads' arenas, and the chunks
/// that are mapped one by one.
///
/// A heap is one chunk behind the other: each begins with its size, and the next one's size says whether it
/// is in use (malloc/malloc.c, 2.26 to 2.42). What the threads' caches hold counts as in use: seven chunks of
/// a size, most of the time. The target goes on meanwhile, and a chunk that is merged while its heap is read
/// leads the reader astray; that is noticed where sizes make no sense, and it goes some chunks back.
///
/// Mappings of large chunks lie among others, and become one with them where they touch: they are found by
/// what they begin with, page by page (/proc/PID/pagemap says which ones are there).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "memattach/base/page_buffer.h"
#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"
#include "memattach/process/memory.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

/// A chunk in use. `words`: the size, and what the block begins with.
struct Chunk {
    std::uint64_t address = 0;  ///< the block's, as malloc() has returned it
    std::uint64_t bytes = 0;    ///< the chunk's
    std::array<std::uint64_t, 9> words{};
};

struct ChunkCounts {
    std::array<std::uint64_t, trace::LiveBlocks::kClasses> blocks{}, bytes{};
    bool large = false;  ///< those above LiveBlocks::kLargestInHeap too
};

class ChunkScan {
  public:
    /// Heaps of more than this together aren't read.
    static constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;
    /// Nor are more pages of other mappings, or mappings of more bytes than that looked through: large chunks
    /// are not counted then. The same where some are swapped out.
    static constexpr std::size_t kMostPages = 400'000;
    static constexpr std::uint64_t kMostMapped = std::uint64_t{64} << 30;

    explicit ChunkScan(const process::Memory& memory, int pid = 0);
    /// Chunks in use of up to LiveBlocks::kLargestChunk. `picked`: up to so many of each class, at random.
    /// Nothing where the heaps are too large, or can't be followed.
    [[nodiscard]] std::optional<ChunkCounts> count(const std::vector<process::Mapping>& maps,
                                                   std::size_t picked = 0);
    [[nodiscard]] const std::vector<Chunk>& picked(std::size_t size_class) const {
        return picked_.at(size_class);
    }

  private:
    using Picked = std::array<std::vector<Chunk>, trace::LiveBlocks::kClasses>;
    struct Heap {
        std::uint64_t from = 0, to = 0;
        std::uint64_t info = 0;  ///< where it says how long it is; 0: the main one
    };
    [[nodiscard]] std::optional<Heap> find_heap(const process::Mapping& mapping) const;
    [[nodiscard]] bool walk(Heap heap, ChunkCounts& counts);
    [[nodiscard]] std::optional<std::uint64_t> end_of(const Heap& heap) const;
    [[nodiscard]] bool find_mapped(const process::Mapping& mapping, ChunkCounts& counts);
    void add(const Chunk& chunk, ChunkCounts& counts);
    void pick(const Chunk& chunk, std::uint64_t seen);
    [[nodiscard]] std::optional<Chunk> chunk_at(std::uint64_t at, const Heap& heap, bool anew);
    [[nodiscard]] bool load(std::uint64_t address, std::uint64_t end, bool anew);

    const process::Memory& memory_;
    int pid_;
    base::UniqueFd pagemap_;
    std::size_t pages_read_ = 0;
    std::uint64_t bytes_passed_ = 0;
    base::PageBuffer buffer_;
    std::uint64_t loaded_ = 0, loaded_end_ = 0;
    std::size_t wanted_ = 0;
    Picked picked_;
    std::mt19937_64 random_{3};
};

}  // namespace memattach::probe
