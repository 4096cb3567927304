#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace memattach::report {

/// Writes JSON piece by piece into one string, without a tree in between: profiles have hundreds of thousands
/// of values. The caller opens and closes in the right order; commas are put in here.
class JsonWriter {
  public:
    JsonWriter& open_object() { return open('{'); }
    JsonWriter& close_object() { return close('}'); }
    JsonWriter& open_array() { return open('['); }
    JsonWriter& close_array() { return close(']'); }

    /// A member's name, a literal of ours.
    JsonWriter& key(std::string_view name);

    /// Text as valid UTF-8; what isn't becomes U+FFFD.
    JsonWriter& value(std::string_view text);
    JsonWriter& value(const char* text) { return value(std::string_view(text)); }
    JsonWriter& value(const std::string& text) { return value(std::string_view(text)); }
    /// The shortest digits that read back as the same number; null where it isn't finite.
    JsonWriter& value(double number);
    template <typename T>
    JsonWriter& value(const T& number) requires std::is_integral_v<T> {
        if constexpr (std::is_same_v<T, bool>) {
            return raw(number ? "true" : "false");
        } else if constexpr (std::is_signed_v<T>) {
            return integer(static_cast<std::int64_t>(number));
        } else {
            return unsigned_integer(static_cast<std::uint64_t>(number));
        }
    }
    /// Unknown is null.
    template <typename T>
    JsonWriter& value(const std::optional<T>& maybe) {
        return maybe ? value(*maybe) : null();
    }
    JsonWriter& null() { return raw("null"); }

    template <typename T>
    JsonWriter& member(std::string_view name, const T& v) {
        return key(name).value(v);
    }

    [[nodiscard]] std::string take() { return std::move(out_); }

  private:
    JsonWriter& open(char c);
    JsonWriter& close(char c);
    JsonWriter& raw(std::string_view text);
    JsonWriter& integer(std::int64_t number);
    JsonWriter& unsigned_integer(std::uint64_t number);
    void comma();

    std::string out_;
    bool comma_ = false;  ///< the next value or key stands behind another one
};

}  // namespace memattach::report
