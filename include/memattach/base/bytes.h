#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

namespace memattach::base {

/// Reads values out of bytes that nobody vouches for. Every read is checked; a failed one leaves the cursor
/// where it was.
class ByteCursor {
  public:
    explicit ByteCursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

    [[nodiscard]] std::size_t offset() const { return offset_; }
    [[nodiscard]] std::size_t remaining() const { return bytes_.size() - offset_; }
    [[nodiscard]] bool at_end() const { return remaining() == 0; }

    template <typename T>
    [[nodiscard]] std::optional<T> read() {
        static_assert(std::is_trivially_copyable_v<T>);
        if (remaining() < sizeof(T)) return std::nullopt;
        T value;
        std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
        offset_ += sizeof(T);
        return value;
    }

    [[nodiscard]] bool skip(std::size_t bytes) {
        if (remaining() < bytes) return false;
        offset_ += bytes;
        return true;
    }

  private:
    std::span<const std::byte> bytes_;
    std::size_t offset_ = 0;
};

/// The T at `offset` in `bytes`, or nothing where it would reach past the end.
template <typename T>
[[nodiscard]] std::optional<T> read_at(std::span<const std::byte> bytes, std::uint64_t offset) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
}

}  // namespace memattach::base
