#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memattach/python/layout.h"

namespace memattach::python {

/// Instructions from `start` up to the next entry's start belong to `line`; 0: to no line (compiler-made
/// code).
struct LineEntry {
    std::uint32_t start = 0;  ///< byte offset
    std::uint32_t line = 0;
};

/// Decodes co_lnotab / co_linetable. The bytes come from the target: any input gives a bounded result, sorted
/// by start.
std::vector<LineEntry> decode_line_table(LineTableKind kind, std::span<const std::byte> table,
                                         std::uint32_t first_line);

/// The line of the instruction at `offset`; 0 where it has none. Offset −1 (not started) gives the first
/// entry's.
std::uint32_t line_at(std::span<const LineEntry> entries, std::int32_t offset);

}  // namespace memattach::python
