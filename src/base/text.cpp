#include "memattach/base/text.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>

namespace memattach::base {
namespace {

struct CodePoint {
    std::uint32_t value;
    std::size_t length;  ///< in bytes; 0: the first byte starts no valid sequence
};

/// Decodes one code point as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
CodePoint decode(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    const std::uint8_t lead = byte(0);
    if (lead < 0x80) return {lead, 1};
    const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return {0, 0};
    std::uint32_t value = lead & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) return {0, 0};
        value = (value << 6) | (byte(i) & 0x3FU);
    }
    constexpr std::array<std::uint32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
    if (value < kSmallest[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return {0, 0};
    return {value, length};
}

bool harmful(std::uint32_t c) {
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x200E || c == 0x200F ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069) || c == 0xFEFF;
}

}  // namespace

std::string printable(std::string_view text, std::size_t max_bytes) {
    std::string out;
    while (!text.empty()) {
        const CodePoint point = decode(text);
        std::string piece;
        std::size_t used = point.length;
        if (point.length == 0) {
            piece = fmt::format("\\x{:02x}", static_cast<std::uint8_t>(text[0]));
            used = 1;
        } else if (harmful(point.value)) {
            piece = point.value < 0x100 ? fmt::format("\\x{:02x}", point.value)
                                        : fmt::format("\\u{:04x}", point.value);
        } else {
            piece = text.substr(0, point.length);
        }
        if (out.size() + piece.size() > max_bytes) return out + "…";
        out += piece;
        text.remove_prefix(used);
    }
    return out;
}

std::string valid_utf8(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    while (!text.empty()) {
        const CodePoint point = decode(text);
        if (point.length == 0) {
            out += "\xEF\xBF\xBD";
            text.remove_prefix(1);
        } else {
            out += text.substr(0, point.length);
            text.remove_prefix(point.length);
        }
    }
    return out;
}

}  // namespace memattach::base
