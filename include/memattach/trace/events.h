#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "memattach/trace/frame.h"

namespace memattach::trace {

/// What the processor was doing for the thread when the sample was taken.
enum class CpuMode : std::uint8_t {
    unknown,  ///< nothing could tell (perf refused, no --blocking)
    python,   ///< in the interpreter itself: its loop and the object code around it
    native,   ///< in an extension module, a C library or the program's own native code
    system,   ///< in the kernel
};

/// One look at one thread. Times are base::monotonic_ns().
struct CpuSample {
    std::uint64_t time_ns = 0;
    std::int32_t pid = 0;
    std::int32_t tid = 0;  ///< in memattach's pid namespace
    bool on_cpu = false;   ///< else: waiting or runnable but not running
    bool holds_gil = false;
    CpuMode mode = CpuMode::unknown;
};

enum class AllocKind : std::uint8_t {
    malloc,  ///< malloc family, whichever allocator serves it
    object,  ///< Python's small-object allocator
    mmap,    ///< mapped by the program itself, not by an allocator on a caller's behalf
    large,   ///< malloc's large blocks, where they are seen apart from the others (probe/large_entry.h)
};

inline constexpr std::size_t kAllocKinds = 4;

/// One sampled allocation. `weight_bytes` is what it stands for: size / (probability that it was kept), where
/// the probability is (1 − exp(−size/R)) × armed_fraction. `sampling_bytes` is that R.
struct Alloc {
    std::uint64_t time_ns = 0;
    std::int32_t pid = 0;
    std::int32_t tid = 0;
    std::uint64_t address = 0;
    std::uint64_t size_bytes = 0;
    double sampling_bytes = 1;
    double armed_fraction = 1;
    /// Which armed window it was seen in; 0 where the site is armed all the time. Samples of one window are
    /// not independent of each other, and the interval is computed with that in mind.
    std::uint64_t window = 0;
    AllocKind kind = AllocKind::malloc;
};

/// One stretch of time in which the allocation *and* free sites of a kind were armed (of large blocks those
/// of allocation alone: their ends are found out by looking), told when it is over,
/// whether anything was seen in it or not: a window without a hit says as much as one with many, and the
/// intervals are computed over all of them. A kind of which no window is ever told was armed all the time.
///
/// The session's own time (the target's run time, stops not counted) is cut into spans; within each span one
/// window is armed at a random place. `own_ns / span_own_ns` is the armed fraction that its Allocs carry.
struct Window {
    std::uint64_t id = 0;  ///< as in Alloc::window, ascending; 0: armed without a break from start to end
    std::int32_t pid = 0;
    AllocKind kind = AllocKind::malloc;
    std::uint64_t start_ns = 0;  ///< armed
    std::uint64_t end_ns = 0;    ///< disarmed
    std::uint64_t own_ns = 0;    ///< the target's own time between the two
    std::uint64_t span_own_ns =
        0;  ///< own time of the whole span that the window stands for, itself included
    /// How far off own_ns may be, relative, one standard deviation, the same way for all windows of a
    /// session: what the stops in it burnt of the target's own clock is known only so well, or how fast the
    /// target's processor is where a window was executed on another.
    double own_spread = 0;
};

/// The end of a block. A realloc is a Free of the old block and, where the new one is sampled, an Alloc.
/// Those of blocks that were never sampled are told as well: unknown ones are counted.
struct Free {
    std::uint64_t time_ns = 0;
    std::int32_t pid = 0;
    std::int32_t tid = 0;
    std::uint64_t address = 0;
    std::uint64_t size_bytes = 0;  ///< munmap: how much; 0: the whole block
};

/// A block that lived when it was last looked at, and that could not be looked at any more when the session
/// ended.
struct Unseen {
    std::int32_t pid = 0;
    std::uint64_t address = 0;
};

/// How many blocks live that weren't there when the session began, by size: counted in the allocators' own
/// books (probe/live_count.h), whereas what sampled blocks add up to is an estimate.
struct LiveBlocks {
    /// Python's small objects: 1 to 16 bytes, 17 to 32, … up to 512. Behind them glibc's chunks, four classes
    /// for each power of two.
    static constexpr std::size_t kObjectClasses = 32, kChunkClasses = 140;
    static constexpr std::size_t kClasses = kObjectClasses + kChunkClasses;
    static constexpr std::uint64_t kLargestObject = 512;
    static constexpr std::uint64_t kLargestChunk = (std::uint64_t{1} << 40) - 16;
    /// Chunks above this are mapped one by one, or may be.
    static constexpr std::uint64_t kLargestInHeap = 96 << 10;

    std::uint64_t time_ns = 0;
    std::int32_t pid = 0;
    bool objects = false, chunks = false;  ///< which of them were counted
    bool large = false;                    ///< of the chunks those above kLargestInHeap as well
    std::array<double, kClasses> blocks{};
    std::array<double, kClasses> bytes{};
    std::array<double, kClasses> variance{};  ///< of `blocks`: what of the first ones has gone is estimated

    /// `size_bytes` as asked for, up to kLargestObject.
    [[nodiscard]] static constexpr std::size_t object_class(std::uint64_t size_bytes) {
        return static_cast<std::size_t>((size_bytes == 0 ? 0 : size_bytes - 1) / 16);
    }
    /// `chunk_bytes`: the whole chunk, 32 to kLargestChunk.
    [[nodiscard]] static constexpr std::size_t chunk_class(std::uint64_t chunk_bytes) {
        const auto power = static_cast<unsigned>(std::bit_width(chunk_bytes | 32)) - 1;
        const std::uint64_t quarter = chunk_bytes >> (power - 2) & 3;
        return kObjectClasses + 4 * (power - 5) + static_cast<std::size_t>(quarter);
    }
    /// The chunk that malloc(size_bytes) takes (malloc/malloc.c, request2size), or one of 16 bytes more.
    [[nodiscard]] static constexpr std::uint64_t chunk_of(std::uint64_t size_bytes) {
        return size_bytes <= 24 ? 32 : (size_bytes + 8 + 15) / 16 * 16;
    }
};
static_assert(LiveBlocks::chunk_class(LiveBlocks::kLargestChunk) < LiveBlocks::kClasses);

/// Where there are too many blocks to follow, whoever follows them drops those whose lowest bit is set, later
/// those whose next one is, and so on: everybody the same ones.
constexpr std::uint64_t thinning_bits(std::uint64_t address, std::uint64_t time_ns) {
    return ((address * 0x9E3779B97F4A7C15ULL) ^ (time_ns * 0xD1B54A32D192ED03ULL)) >> 40;
}

/// Everything that a profile is missing, by kind. It travels with the result.
enum class Loss : std::uint8_t {
    torn_stacks,        ///< the stack changed while it was read, on every try: it may mix two moments
    unreadable_stacks,  ///< a frame or code object could not be read; the sample has an "[unknown frame]"
    truncated_stacks,   ///< deeper than kMaxStackDepth
    missed_samples,     ///< asked for by --rate, but memattach came too late
    lost_events,        ///< a ring buffer was full
    gone_threads,       ///< ended while being looked at
    count_,
};

constexpr std::string_view name_of(Loss loss) {
    constexpr std::array<std::string_view, static_cast<std::size_t>(Loss::count_)> kNames = {
        "torn_stacks",    "unreadable_stacks", "truncated_stacks",
        "missed_samples", "lost_events",       "gone_threads"};
    return kNames[static_cast<std::size_t>(loss)];
}

struct LossCounts {
    std::array<std::uint64_t, static_cast<std::size_t>(Loss::count_)> counts{};
    std::uint64_t& operator[](Loss loss) { return counts[static_cast<std::size_t>(loss)]; }
    std::uint64_t operator[](Loss loss) const { return counts[static_cast<std::size_t>(loss)]; }
};

}  // namespace memattach::trace
