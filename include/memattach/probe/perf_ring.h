#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace memattach::probe {

/// Cuts a perf ring buffer into records. `data` is the ring (a power of two long); records lie between `tail`
/// and `head`, which count bytes ever written and only grow. A record that wraps around the end is put
/// together in an own buffer, valid until the next call.
///
/// The kernel writes the ring, so its contents are trusted no further than their length: a header that
/// doesn't fit skips everything up to head (and says so), never reads beside it.
class RingCursor {
  public:
    RingCursor(std::span<const std::byte> data, std::uint64_t head, std::uint64_t tail)
        : data_(data), head_(head), tail_(tail) {}

    /// The next whole record, empty at the end.
    [[nodiscard]] std::span<const std::byte> next();

    /// What to store as data_tail after the last next().
    [[nodiscard]] std::uint64_t tail() const { return tail_; }
    [[nodiscard]] bool corrupt() const { return corrupt_; }

  private:
    std::span<const std::byte> data_;
    std::uint64_t head_;
    std::uint64_t tail_;
    bool corrupt_ = false;
    std::vector<std::byte> joined_;
};

}  // namespace memattach::probe
