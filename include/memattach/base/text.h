#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace memattach::base {

/// `text` made fit for a terminal or a one-line message: control characters (C0, C1, DEL), bidirectional
/// overrides and bytes that aren't UTF-8 are shown as `\x1b` or `\u202e`; cut to `max_bytes` with "…" at the
/// end. What comes from the target (names, paths, command lines, source) goes through here before it is
/// printed.
std::string printable(std::string_view text, std::size_t max_bytes = 4096);

/// `text` as valid UTF-8: every byte that isn't becomes U+FFFD. For JSON and HTML, which have their own
/// escaping.
std::string valid_utf8(std::string_view text);

}  // namespace memattach::base
