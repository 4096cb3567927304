#include <elf.h>

#include <algorithm>
#include <array>
#include <span>

#include "site_parts.h"

namespace memattach::probe {
namespace {

constexpr std::size_t kMaxFunctions = 1 << 20;
// DW_EH_PE_*, Linux Standard Base, "DWARF Exception Header Encoding": the one form that linkers write.
constexpr std::uint8_t kUdata4 = 0x03;
constexpr std::uint8_t kDataRelativeSdata4 = 0x3b;

struct Entry {
    std::int32_t start;  ///< of the function, relative to the header
    std::int32_t description;
};

}  // namespace

std::optional<base::Address> function_end(const SiteContext& context, base::Address start) {
    const process::Mapping* home = process::find_mapping(context.maps, start);
    if (home == nullptr) return std::nullopt;
    const auto head = std::find_if(context.maps.begin(), context.maps.end(), [&](const process::Mapping& m) {
        return m.file_offset == 0 && m.same_file(*home);
    });
    if (head == context.maps.end()) return std::nullopt;
    const auto header = context.memory.read<Elf64_Ehdr>(head->start);
    if (!header || header->e_phnum > 256) return std::nullopt;
    std::vector<Elf64_Phdr> segments(header->e_phnum);
    if (!context.memory.read_exactly(head->start + header->e_phoff,
                                     std::as_writable_bytes(std::span(segments))))
        return std::nullopt;
    std::optional<std::uint64_t> bias, table_address;
    for (const Elf64_Phdr& segment : segments) {
        if (segment.p_type == PT_LOAD && segment.p_offset == 0) bias = head->start.value() - segment.p_vaddr;
        if (segment.p_type == PT_GNU_EH_FRAME) table_address = segment.p_vaddr;
    }
    if (!bias || !table_address) return std::nullopt;
    const base::Address table(*bias + *table_address);
    struct Head {
        std::array<std::uint8_t, 4> kinds;  ///< version, and how frame pointer, count and table are written
        std::int32_t frame;
        std::uint32_t count;
    };
    const auto index = context.memory.read<Head>(table);
    if (!index || index->kinds[0] != 1 || index->kinds[2] != kUdata4 ||
        index->kinds[3] != kDataRelativeSdata4 || index->count > kMaxFunctions)
        return std::nullopt;
    std::vector<Entry> entries(index->count);
    if (!context.memory.read_exactly(table + sizeof(Head), std::as_writable_bytes(std::span(entries))))
        return std::nullopt;
    const std::int64_t wanted = start - table;
    const auto next = std::find_if(entries.begin(), entries.end(),
                                   [&](const Entry& entry) { return entry.start > wanted; });
    if (next == entries.end()) return std::nullopt;
    return table + static_cast<std::uint64_t>(std::int64_t{next->start});
}

}  // namespace memattach::probe
