#include "memattach/python/linetable.h"

#include <algorithm>

namespace memattach::python {
namespace {

constexpr std::uint32_t kCodeUnitBytes = 2;
constexpr std::uint64_t kMaxOffset = 0x7FFFFFFF;  // co_code's length is an int

/// Lines are ints in CPython; tables from a hostile target may lead anywhere. No line: 0.
std::uint32_t as_line(std::int64_t line) {
    return line > 0 && line <= 0x7FFFFFFF ? static_cast<std::uint32_t>(line) : 0;
}

/// Appends so that starts stay strictly ascending and neighbours differ.
void append(std::vector<LineEntry>& entries, std::uint64_t start, std::uint32_t line) {
    const auto at = static_cast<std::uint32_t>(std::min(start, kMaxOffset));
    if (!entries.empty() && entries.back().start == at) entries.pop_back();  // an empty range
    if (!entries.empty() && entries.back().line == line) return;
    entries.push_back({at, line});
}

/// Objects/lnotab_notes.txt (3.8, 3.9): pairs of (unsigned byte increment, signed line increment); each pair
/// counts from the offset on that it leads to.
std::vector<LineEntry> decode_lnotab(std::span<const std::byte> table, std::uint32_t first_line) {
    std::vector<LineEntry> entries;
    std::uint64_t offset = 0;
    std::int64_t line = first_line;
    append(entries, offset, as_line(line));
    for (std::size_t i = 0; i + 1 < table.size(); i += 2) {
        offset += std::to_integer<std::uint8_t>(table[i]);
        line += static_cast<std::int8_t>(table[i + 1]);
        append(entries, offset, as_line(line));
    }
    return entries;
}

/// PEP 626 and Objects/lnotab_notes.txt (3.10): pairs of (length in bytes, signed line increment); −128 says
/// that the range has no line.
std::vector<LineEntry> decode_linetable_310(std::span<const std::byte> table, std::uint32_t first_line) {
    std::vector<LineEntry> entries;
    std::uint64_t offset = 0;
    std::int64_t line = first_line;
    for (std::size_t i = 0; i + 1 < table.size(); i += 2) {
        const auto delta = static_cast<std::int8_t>(table[i + 1]);
        const bool has_line = delta != -128;
        if (has_line) line += delta;
        append(entries, offset, has_line ? as_line(line) : 0);
        offset += std::to_integer<std::uint8_t>(table[i]);
    }
    append(entries, offset, 0);
    return entries;
}

/// Objects/locations.md (3.11+; InternalDocs/code_objects.md from 3.14 on): each entry opens with a byte that
/// has the top bit set, 4 bits of form and 3 bits of length − 1 in code units; no other byte has the top bit
/// set.
class LocationTable {
  public:
    explicit LocationTable(std::span<const std::byte> table) : table_(table) {}

    std::vector<LineEntry> decode(std::uint32_t first_line) {
        enum Form : std::uint8_t {
            one_line_0 = 10,
            one_line_2 = 12,
            no_columns = 13,
            long_form = 14,
            none = 15
        };
        std::vector<LineEntry> entries;
        std::uint64_t offset = 0;
        std::int64_t line = first_line;
        while (at_ < table_.size()) {
            const auto head = std::to_integer<std::uint8_t>(table_[at_++]);
            const auto form = static_cast<std::uint8_t>((head >> 3) & 15U);
            if (form == no_columns || form == long_form) {
                line += signed_varint();
            } else if (form >= one_line_0 && form <= one_line_2) {
                line += form - one_line_0;
            }
            append(entries, offset, form == none ? 0 : as_line(line));
            offset += ((head & 7U) + 1) * kCodeUnitBytes;
            skip_to_next_entry();
        }
        append(entries, offset, 0);
        return entries;
    }

  private:
    /// Six bits a byte, the lowest first; the lowest bit of the value is the sign.
    std::int64_t signed_varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; at_ < table_.size(); shift += 6) {
            const auto byte = std::to_integer<std::uint8_t>(table_[at_]);
            if ((byte & 0x80U) != 0) break;  // the next entry: this one was cut short
            ++at_;
            if (shift < 36) value |= static_cast<std::uint64_t>(byte & 63U) << shift;
            if ((byte & 64U) == 0) break;
        }
        const auto magnitude = static_cast<std::int64_t>(value >> 1U);
        return (value & 1U) != 0 ? -magnitude : magnitude;
    }

    void skip_to_next_entry() {
        while (at_ < table_.size() && (std::to_integer<std::uint8_t>(table_[at_]) & 0x80U) == 0) ++at_;
    }

    std::span<const std::byte> table_;
    std::size_t at_ = 0;
};

}  // namespace

std::vector<LineEntry> decode_line_table(LineTableKind kind, std::span<const std::byte> table,
                                         std::uint32_t first_line) {
    switch (kind) {
        case LineTableKind::lnotab:
            return decode_lnotab(table, first_line);
        case LineTableKind::linetable_310:
            return decode_linetable_310(table, first_line);
        case LineTableKind::locations:
            return LocationTable(table).decode(first_line);
    }
    return {};
}

std::uint32_t line_at(std::span<const LineEntry> entries, std::int32_t offset) {
    if (entries.empty()) return 0;
    if (offset < 0) return entries.front().line;
    const auto after =
        std::upper_bound(entries.begin(), entries.end(), static_cast<std::uint32_t>(offset),
                         [](std::uint32_t at, const LineEntry& entry) { return at < entry.start; });
    return after == entries.begin() ? 0 : std::prev(after)->line;
}

}  // namespace memattach::python
