#include "memattach/probe/perf_ring.h"

#include <linux/perf_event.h>

#include <algorithm>
#include <cstring>

namespace memattach::probe {

std::span<const std::byte> RingCursor::next() {
    const std::uint64_t size = data_.size();
    if (tail_ == head_ || size == 0) return {};
    const std::uint64_t available = head_ - tail_;
    perf_event_header header{};
    if (available > size || available < sizeof(header)) {
        corrupt_ = true;
        tail_ = head_;
        return {};
    }
    const auto copy = [&](std::byte* to, std::uint64_t bytes) {
        const auto start = static_cast<std::size_t>(tail_ % size);
        const auto first = std::min<std::size_t>(static_cast<std::size_t>(bytes), data_.size() - start);
        std::memcpy(to, data_.data() + start, first);
        std::memcpy(to + first, data_.data(), static_cast<std::size_t>(bytes) - first);
    };
    copy(reinterpret_cast<std::byte*>(&header), sizeof(header));
    if (header.size < sizeof(header) || header.size > available) {
        corrupt_ = true;
        tail_ = head_;
        return {};
    }
    const auto start = static_cast<std::size_t>(tail_ % size);
    std::span<const std::byte> record;
    if (start + header.size <= data_.size()) {
        record = data_.subspan(start, header.size);
    } else {
        joined_.resize(header.size);
        copy(joined_.data(), header.size);
        record = joined_;
    }
    tail_ += header.size;
    return record;
}

}  // namespace memattach::probe
