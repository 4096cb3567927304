#include "memattach/report/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

namespace memattach::report {
namespace {

struct Character {
    std::size_t bytes;
    std::size_t columns;
};

bool in(std::uint32_t c, std::uint32_t first, std::uint32_t last) {
    return c >= first && c <= last;
}

/// After Unicode's East Asian Width (W and F) and general category Mn, by block rather than by character.
std::size_t width_of(std::uint32_t c) {
    if (in(c, 0x300, 0x36F) || in(c, 0x200B, 0x200D) || in(c, 0x20D0, 0x20FF) || in(c, 0xFE00, 0xFE0F))
        return 0;
    const bool wide = in(c, 0x1100, 0x115F) || in(c, 0x2E80, 0x303E) || in(c, 0x3041, 0xA4CF) ||
                      in(c, 0xAC00, 0xD7A3) || in(c, 0xF900, 0xFAFF) || in(c, 0xFE30, 0xFE6F) ||
                      in(c, 0xFF00, 0xFF60) || in(c, 0xFFE0, 0xFFE6) || in(c, 0x1F300, 0x1F64F) ||
                      in(c, 0x1F900, 0x1F9FF) || in(c, 0x20000, 0x3FFFD);
    return wide ? 2 : 1;
}

Character next(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    const std::uint8_t lead = byte(0);
    const std::size_t length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (length == 1 || text.size() < length) return {1, 1};
    std::uint32_t value = lead & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) value = (value << 6) | (byte(i) & 0x3FU);
    return {length, width_of(value)};
}

std::vector<Character> characters_of(std::string_view text) {
    std::vector<Character> characters;
    while (!text.empty()) {
        characters.push_back(next(text));
        text.remove_prefix(characters.back().bytes);
    }
    return characters;
}

std::string two_units(double big, const char* big_unit, double small, const char* small_unit) {
    return small < 1 ? fmt::format("{:.0f} {}", big, big_unit)
                     : fmt::format("{:.0f} {} {:.0f} {}", big, big_unit, std::floor(small), small_unit);
}

}  // namespace

std::size_t columns_of(std::string_view text) {
    std::size_t columns = 0;
    for (const Character& c : characters_of(text)) columns += c.columns;
    return columns;
}

std::string cut_right(std::string_view text, std::size_t columns) {
    if (columns_of(text) <= columns) return std::string(text);
    if (columns == 0) return {};
    std::size_t bytes = 0;
    std::size_t used = 1;  // the "…"
    for (const Character& c : characters_of(text)) {
        if (used + c.columns > columns) break;
        used += c.columns;
        bytes += c.bytes;
    }
    return std::string(text.substr(0, bytes)) + "…";
}

std::string cut_left(std::string_view text, std::size_t columns) {
    std::size_t left = columns_of(text);
    if (left <= columns) return std::string(text);
    if (columns == 0) return {};
    std::size_t bytes = 0;
    for (const Character& c : characters_of(text)) {
        if (left < columns) break;
        left -= c.columns;
        bytes += c.bytes;
    }
    return "…" + std::string(text.substr(bytes));
}

std::string pad_right(std::string_view text, std::size_t columns) {
    const std::size_t used = columns_of(text);
    return std::string(text) + std::string(columns > used ? columns - used : 0, ' ');
}

std::string pad_left(std::string_view text, std::size_t columns) {
    const std::size_t used = columns_of(text);
    return std::string(columns > used ? columns - used : 0, ' ') + std::string(text);
}

std::string bytes_text(double bytes) {
    constexpr std::array<const char*, 6> kUnits = {"bytes", "KB", "MB", "GB", "TB", "PB"};
    std::size_t unit = 0;
    double value = std::abs(bytes);
    while (value >= 999.5 && unit + 1 < kUnits.size()) {
        value /= 1000;
        ++unit;
    }
    const char* sign = bytes < 0 ? "-" : "";
    if (value == 0) return "0";
    if (unit == 0) return fmt::format("{}{:.0f} {}", sign, value, kUnits[unit]);
    return fmt::format("{}{:.{}f} {}", sign, value, value < 99.95 ? 1 : 0, kUnits[unit]);
}

std::string duration_text(double seconds) {
    if (!(seconds > 0)) return "0 s";
    if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1000);
    if (seconds < 59.95) return fmt::format("{:.{}f} s", seconds, seconds < 9.95 ? 1 : 0);
    const double s = std::round(seconds);
    if (s < 3600) return two_units(std::floor(s / 60), "min", std::fmod(s, 60), "s");
    if (s < 48 * 3600) return two_units(std::floor(s / 3600), "h", std::fmod(s, 3600) / 60, "min");
    if (s < 1000.0 * 86400) return fmt::format("{:.0f} days", s / 86400);
    return "years";
}

std::string count_text(std::uint64_t count) {
    std::string digits = std::to_string(count);
    for (std::size_t i = digits.size(); i > 3;) {
        i -= 3;
        digits.insert(i, ",");
    }
    return digits;
}

}  // namespace memattach::report
