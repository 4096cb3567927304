/// Decodes the line tables that dump.py wrote and compares every instruction's line with what that Python
/// says of it. Reads standard input; prints how many were compared; fails on the first few differences and on
/// a dump without any.

#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "memattach/base/bytes.h"
#include "memattach/python/linetable.h"

using namespace memattach;

namespace {

std::vector<std::byte> read_all(std::FILE* file) {
    std::vector<std::byte> bytes;
    std::vector<std::byte> chunk(1U << 20U);
    while (const std::size_t got = std::fread(chunk.data(), 1, chunk.size(), file)) {
        bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(got));
    }
    return bytes;
}

struct Range {
    std::uint32_t start;
    std::uint32_t end;
    std::uint32_t line;
};

}  // namespace

int main() {
    const std::vector<std::byte> dump = read_all(stdin);
    constexpr std::size_t kHeaderBytes = 9;
    if (dump.size() < kHeaderBytes || std::memcmp(dump.data(), "MALINES1", 8) != 0) {
        fmt::print(stderr, "not a dump of lines ({} bytes)\n", dump.size());
        return 1;
    }
    const auto kind = static_cast<python::LineTableKind>(dump[8]);
    base::ByteCursor cursor(dump);
    (void)cursor.skip(kHeaderBytes);
    std::uint64_t codes = 0;
    std::uint64_t instructions = 0;
    std::uint64_t mismatches = 0;
    while (!cursor.at_end()) {
        const auto first_line = cursor.read<std::uint32_t>();
        const auto table_bytes = cursor.read<std::uint32_t>();
        if (!first_line || !table_bytes || cursor.remaining() < *table_bytes) return 1;
        const auto table = std::span(dump).subspan(cursor.offset(), *table_bytes);
        (void)cursor.skip(*table_bytes);
        const auto count = cursor.read<std::uint32_t>();
        if (!count) return 1;
        const auto entries = python::decode_line_table(kind, table, *first_line);
        for (std::uint32_t i = 0; i < *count; ++i) {
            const auto range = cursor.read<Range>();
            if (!range) return 1;
            for (std::uint32_t offset = range->start; offset < range->end; offset += 2) {
                ++instructions;
                const std::uint32_t line = python::line_at(entries, static_cast<std::int32_t>(offset));
                if (line != range->line && ++mismatches <= 5) {
                    fmt::print(stderr,
                               "code object {} (first line {}), offset {}: decoded {}, Python says {}\n",
                               codes, *first_line, offset, line, range->line);
                }
            }
        }
        ++codes;
    }
    fmt::print("{} code objects, {} instructions, {} mismatches\n", codes, instructions, mismatches);
    return mismatches == 0 && instructions > 0 ? 0 : 1;
}
