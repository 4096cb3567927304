#include "version_text.h"

#include <charconv>

namespace memattach::python {
namespace {

bool number(std::string_view& text, int& value) {
    if (text.empty() || text.front() < '0' || text.front() > '9') return false;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + std::min<std::size_t>(text.size(), 3), value);
    if (error != std::errc()) return false;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return true;
}

bool skip(std::string_view& text, std::string_view prefix) {
    if (text.substr(0, prefix.size()) != prefix) return false;
    text.remove_prefix(prefix.size());
    return true;
}

/// "3.8.18 (", "3.14.0a1+ (", "3.13.0rc2 experimental free-threading build ("
std::optional<Version> version_at(std::string_view text) {
    Version v;
    if (!number(text, v.major) || !skip(text, ".") || !number(text, v.minor) || !skip(text, ".") ||
        !number(text, v.micro))
        return std::nullopt;
    if ((v.major != 3 && v.major != 2) || v.minor > 99) return std::nullopt;
    std::uint32_t level = 0xF0;
    int serial = 0;
    if (skip(text, "rc")) {
        level = 0xC0;
    } else if (skip(text, "a")) {
        level = 0xA0;
    } else if (skip(text, "b")) {
        level = 0xB0;
    }
    if (level != 0xF0 && (!number(text, serial) || serial > 15)) return std::nullopt;
    skip(text, "+");
    skip(text, " experimental free-threading build");
    skip(text, " free-threading build");
    if (!skip(text, " (")) return std::nullopt;
    v.hex = static_cast<std::uint32_t>(v.major) << 24 | static_cast<std::uint32_t>(v.minor) << 16 |
            static_cast<std::uint32_t>(v.micro & 0xFF) << 8 | level | static_cast<std::uint32_t>(serial);
    return v;
}

}  // namespace

std::optional<Version> find_version_text(std::string_view bytes) {
    // The text stands at the start of a zeroed buffer.
    for (std::size_t at = 0; at < bytes.size(); ++at) {
        at = bytes.find('.', at);
        if (at == std::string_view::npos) break;
        if (at < 1 || (bytes[at - 1] != '3' && bytes[at - 1] != '2')) continue;
        if (at >= 2 && bytes[at - 2] != '\0') continue;
        if (const auto version = version_at(bytes.substr(at - 1))) return version;
    }
    return std::nullopt;
}

std::optional<Version> version_in_name(std::string_view base_name) {
    const std::size_t at = base_name.find("python");
    if (at == std::string_view::npos) return std::nullopt;
    base_name.remove_prefix(at + 6);
    Version v;
    if (!number(base_name, v.major) || !skip(base_name, ".") || !number(base_name, v.minor))
        return std::nullopt;
    if (v.major != 2 && v.major != 3) return std::nullopt;
    return v;
}

}  // namespace memattach::python
