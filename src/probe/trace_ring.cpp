#include "memattach/probe/trace_ring.h"

#include <algorithm>
#include <cstring>

namespace memattach::probe {
namespace {

struct RecordHeader {
    std::uint32_t bytes = 0;
    std::uint32_t frames = 0;
};

static_assert(sizeof(TraceEvent) % 8 == 0);
static_assert(sizeof(python::RawFrame) % 8 == 0);
static_assert(std::is_trivially_copyable_v<python::RawFrame>);

constexpr std::uint64_t kFixedBytes = sizeof(RecordHeader) + sizeof(TraceEvent);

}  // namespace

bool TraceRing::write(const TraceEvent& event, std::span<const python::RawFrame> frames) {
    const std::size_t count = std::min(frames.size(), trace::kMaxStackDepth);
    const std::uint64_t bytes = kFixedBytes + count * sizeof(python::RawFrame);
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    const std::uint64_t tail = tail_.load(std::memory_order_acquire);
    const std::uint64_t to_end = kBytes - head % kBytes;
    const std::uint64_t needed = bytes > to_end ? to_end + bytes : bytes;
    if (kBytes - (head - tail) < needed) {
        lost_.fetch_add(1, std::memory_order_relaxed);
        return false;
    }
    if (bytes > to_end) {
        const RecordHeader skip;
        std::memcpy(data_.data() + head % kBytes, &skip, sizeof skip);
        head += to_end;
    }
    std::byte* out = data_.data() + head % kBytes;
    const RecordHeader header{static_cast<std::uint32_t>(bytes), static_cast<std::uint32_t>(count)};
    std::memcpy(out, &header, sizeof header);
    std::memcpy(out + sizeof header, &event, sizeof event);
    if (count > 0) std::memcpy(out + kFixedBytes, frames.data(), count * sizeof(python::RawFrame));
    head_.store(head + bytes, std::memory_order_release);
    return true;
}

bool TraceRing::read(TraceEvent& event, std::vector<python::RawFrame>& frames) {
    const std::uint64_t head = head_.load(std::memory_order_acquire);
    std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    while (tail < head && head - tail <= kBytes) {
        const std::uint64_t to_end = kBytes - tail % kBytes;
        RecordHeader header;
        std::memcpy(&header, data_.data() + tail % kBytes, sizeof header);
        if (header.bytes == 0) {
            tail += to_end;
            continue;
        }
        if (header.frames > trace::kMaxStackDepth || header.bytes > to_end || header.bytes > head - tail ||
            header.bytes != kFixedBytes + header.frames * sizeof(python::RawFrame)) {
            break;
        }
        const std::byte* in = data_.data() + tail % kBytes;
        std::memcpy(&event, in + sizeof header, sizeof event);
        frames.resize(header.frames);
        if (!frames.empty())
            std::memcpy(frames.data(), in + kFixedBytes, frames.size() * sizeof(python::RawFrame));
        tail_.store(tail + header.bytes, std::memory_order_release);
        return true;
    }
    tail_.store(head, std::memory_order_release);
    return false;
}

}  // namespace memattach::probe
