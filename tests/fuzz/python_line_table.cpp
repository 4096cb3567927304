#include <cstdint>
#include <cstdlib>

#include "memattach/python/linetable.h"

/// Any bytes as a line table of any kind: bounded, sorted, and every offset has an answer.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach::python;
    if (size < 2) return 0;
    const auto kind = static_cast<LineTableKind>(data[0] % 3);
    const std::uint32_t first_line = data[1] == 255 ? 0xFFFFFFFF : data[1];
    const auto entries = decode_line_table(kind, std::as_bytes(std::span(data + 2, size - 2)), first_line);
    if (entries.size() > size + 2) std::abort();
    for (std::size_t i = 1; i < entries.size(); ++i) {
        if (entries[i - 1].start >= entries[i].start) std::abort();
    }
    for (std::int32_t offset = -2; offset < 300; ++offset) {
        if (line_at(entries, offset) > 0x7FFFFFFF) std::abort();
    }
    return 0;
}
