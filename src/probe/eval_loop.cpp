#include "memattach/probe/eval_loop.h"

#include <algorithm>
#include <span>
#include <vector>

#include "memattach/base/bytes.h"

namespace memattach::probe {
namespace {

// Encodings of pointers (LSB core specification, "DWARF extensions"); those that binutils and lld write.
constexpr std::byte kUnsigned4{0x03};
constexpr std::byte kFromHeaderSigned4{0x3b};

constexpr std::uint32_t kMaxFunctions = 1'000'000;
constexpr std::uint64_t kMaxUnwindBytes = 64 << 20;
constexpr std::uint64_t kLeastBytes = 16 << 10;

struct Header {
    std::byte version, frame_encoding, count_encoding, table_encoding;
    std::int32_t frame;
    std::uint32_t count;
};
static_assert(sizeof(Header) == 12);

struct Entry {
    std::int32_t function, description;
};

}  // namespace

std::optional<CodeRange> find_eval_loop(const process::Memory& memory, base::Address eh_frame_header,
                                        base::Address text_start, base::Address text_end) {
    const auto header = memory.read<Header>(eh_frame_header);
    if (!header || header->version != std::byte{1} || header->count_encoding != kUnsigned4 ||
        header->table_encoding != kFromHeaderSigned4 || header->count == 0 || header->count > kMaxFunctions)
        return std::nullopt;
    std::vector<Entry> entries(header->count);
    if (!memory.read_exactly(eh_frame_header + sizeof(Header), std::as_writable_bytes(std::span(entries))))
        return std::nullopt;
    const auto [first, last] =
        std::minmax_element(entries.begin(), entries.end(),
                            [](const Entry& a, const Entry& b) { return a.description < b.description; });
    // A description starts with u32 length, u32 offset of its CIE, s32 start of the function, u32 its length,
    // where addresses take four bytes, as they do wherever the table above does.
    constexpr std::uint64_t kDescriptionBytes = 16;
    const std::uint64_t bytes =
        static_cast<std::uint64_t>(static_cast<std::int64_t>(last->description) - first->description) +
        kDescriptionBytes;
    if (bytes > kMaxUnwindBytes) return std::nullopt;
    std::vector<std::byte> descriptions(static_cast<std::size_t>(bytes));
    const auto offset = [](std::int32_t value) {
        return static_cast<std::uint64_t>(static_cast<std::int64_t>(value));
    };
    if (!memory.read_exactly(eh_frame_header + offset(first->description), descriptions)) return std::nullopt;

    std::optional<CodeRange> largest;
    std::uint64_t largest_bytes = 0, next_bytes = 0;
    for (const Entry& entry : entries) {
        const base::Address start = eh_frame_header + offset(entry.function);
        const auto size = base::read_at<std::uint32_t>(
            descriptions,
            static_cast<std::uint64_t>(static_cast<std::int64_t>(entry.description) - first->description) +
                12);
        if (!size || start < text_start || start + *size > text_end) continue;
        if (*size > largest_bytes) {
            next_bytes = largest_bytes;
            largest_bytes = *size;
            largest = CodeRange{start, start + *size};
        } else {
            next_bytes = std::max<std::uint64_t>(next_bytes, *size);
        }
    }
    if (largest_bytes < kLeastBytes || largest_bytes < next_bytes + next_bytes / 4) return std::nullopt;
    return largest;
}

}  // namespace memattach::probe
