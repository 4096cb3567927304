#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace memattach::base {

/// An address in the target. It is a type of its own so that it can neither be dereferenced here nor mixed up
/// with a length. Arithmetic wraps around as the target's own would; whoever reads through it must check what
/// comes back.
class Address {
  public:
    constexpr Address() = default;
    constexpr explicit Address(std::uint64_t value) : value_(value) {}

    [[nodiscard]] constexpr std::uint64_t value() const { return value_; }
    [[nodiscard]] constexpr bool is_null() const { return value_ == 0; }

    friend constexpr Address operator+(Address a, std::uint64_t bytes) { return Address(a.value_ + bytes); }
    friend constexpr Address operator-(Address a, std::uint64_t bytes) { return Address(a.value_ - bytes); }
    /// Distance in bytes; negative where `a` lies below `b`.
    friend constexpr std::int64_t operator-(Address a, Address b) {
        return static_cast<std::int64_t>(a.value_ - b.value_);
    }
    friend constexpr auto operator<=>(Address, Address) = default;

  private:
    std::uint64_t value_ = 0;
};

}  // namespace memattach::base

template <>
struct std::hash<memattach::base::Address> {
    std::size_t operator()(memattach::base::Address a) const noexcept {
        // Objects are at least 16-byte aligned: fold the constant low bits away.
        const std::uint64_t x = a.value() * 0x9E3779B97F4A7C15ULL;
        return static_cast<std::size_t>(x ^ (x >> 32));
    }
};
