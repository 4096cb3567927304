#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace memattach::report {

/// Columns that `text` (valid UTF-8 without control characters) takes on a terminal: 2 for East Asian wide
/// characters and emoji, 0 for combining marks.
[[nodiscard]] std::size_t columns_of(std::string_view text);

/// `text` cut to `columns`, with "…" in its last column where something was left out.
[[nodiscard]] std::string cut_right(std::string_view text, std::size_t columns);

/// The end of `text`, with "…" in front: for paths, whose end says more than their beginning.
[[nodiscard]] std::string cut_left(std::string_view text, std::size_t columns);

/// `text` with spaces after or before it, to `columns`.
[[nodiscard]] std::string pad_right(std::string_view text, std::size_t columns);
[[nodiscard]] std::string pad_left(std::string_view text, std::size_t columns);

/// "0", "12 KB", "1.5 MB", "225.6 MB", "10.4 GB"; decimal units, as `--malloc-threshold` has them.
[[nodiscard]] std::string bytes_text(double bytes);

/// "450 ms", "12 s", "3 min 20 s", "5 h 10 min", "12 days".
[[nodiscard]] std::string duration_text(double seconds);

/// "1,234,567"
[[nodiscard]] std::string count_text(std::uint64_t count);

}  // namespace memattach::report
