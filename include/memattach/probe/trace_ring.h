#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "memattach/probe/block_content.h"
#include "memattach/python/reader.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

enum class TraceEventType : std::uint8_t {
    alloc,
    free,
    window,
    content,  ///< what a block held when its window was over
    exec,     ///< the target runs another program now: nothing further comes
    ending,   ///< its leader is about to end; its memory can be read until the analysing half has said so
    child,    ///< a process was forked: tid is its id
};

/// What the tracing process tells the analysing one. Which fields mean something depends on the type; those
/// of alloc and window are as in trace/events.h.
struct TraceEvent {
    TraceEventType type = TraceEventType::alloc;
    trace::AllocKind kind = trace::AllocKind::malloc;
    bool stack_truncated = false;
    bool stack_broken = false;
    std::int32_t tid = 0;
    std::uint64_t time_ns = 0;
    std::uint64_t address = 0;  ///< window: when it ended
    std::uint64_t size_bytes = 0;
    std::uint64_t window = 0;
    std::uint64_t own_ns = 0;
    std::uint64_t span_own_ns = 0;
    double sampling_bytes = 1;
    double armed_fraction = 1;
    double own_spread = 0;
    std::uint64_t caller = 0;  ///< alloc: where the call returns to
    BlockContent content;      ///< content: of the block at `address`
};

/// One writer, one reader, in memory that they share; filled with zeros is empty. The writer never waits:
/// what doesn't fit is counted. A reader that finds nonsense (the writer was killed in the middle of
/// something) stops there.
///
///     positions count bytes since the start:   tail ≤ head ≤ tail + kBytes
///     a record: u32 bytes (of the whole record, a multiple of 8; 0: skip to the start of the buffer),
///     u32 frames, TraceEvent, RawFrame…
class TraceRing {
  public:
    static constexpr std::uint64_t kBytes = std::uint64_t{4} << 20;

    /// False where there was no room.
    bool write(const TraceEvent& event, std::span<const python::RawFrame> frames);

    /// False where nothing is left.
    bool read(TraceEvent& event, std::vector<python::RawFrame>& frames);

    [[nodiscard]] std::uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
    [[nodiscard]] std::uint64_t waiting_bytes() const {
        return head_.load(std::memory_order_acquire) - tail_.load(std::memory_order_acquire);
    }

  private:
    alignas(64) std::atomic<std::uint64_t> head_;
    alignas(64) std::atomic<std::uint64_t> tail_;
    alignas(64) std::atomic<std::uint64_t> lost_;
    alignas(64) std::array<std::byte, kBytes> data_;
};

}  // namespace memattach::probe
