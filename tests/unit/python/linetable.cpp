#include "memattach/python/linetable.h"

#include <doctest/doctest.h>

#include <initializer_list>
#include <random>

using namespace memattach::python;

namespace {

std::vector<std::byte> bytes(std::initializer_list<int> values) {
    std::vector<std::byte> result;
    for (const int value : values) result.push_back(static_cast<std::byte>(value));
    return result;
}

}  // namespace

TEST_CASE("lnotab: lines go forward and back, long jumps take several pairs") {
    // 0: line 10; 6: line 11; 8: line 9; 264: line 139
    const auto table = bytes({6, 1, 2, -2, 255, 0, 1, 127, 0, 3});
    const auto entries = decode_line_table(LineTableKind::lnotab, table, 10);
    CHECK(line_at(entries, -1) == 10);
    CHECK(line_at(entries, 0) == 10);
    CHECK(line_at(entries, 5) == 10);
    CHECK(line_at(entries, 6) == 11);
    CHECK(line_at(entries, 8) == 9);
    CHECK(line_at(entries, 263) == 9);
    CHECK(line_at(entries, 264) == 139);
    CHECK(line_at(entries, 100000) == 139);
}

TEST_CASE("3.10: ranges without a line, and nothing after the last one") {
    const auto table = bytes({4, 0, 2, -128, 6, 2, 0, 5, 2, -1});
    const auto entries = decode_line_table(LineTableKind::linetable_310, table, 3);
    CHECK(line_at(entries, 0) == 3);
    CHECK(line_at(entries, 4) == 0);
    CHECK(line_at(entries, 6) == 5);
    CHECK(line_at(entries, 10) == 5);
    CHECK(line_at(entries, 12) == 9);
    CHECK(line_at(entries, 14) == 0);
}

TEST_CASE("location table: every form of entry") {
    const auto head = [](int form, int units) { return 0x80 | (form << 3) | (units - 1); };
    const auto table = bytes({
        head(15, 1),                                   // 0: none
        head(13, 2), 2,                                // 2: +1, no columns
        head(0, 8),  0x11,                             // 6: same line, short form
        head(12, 1), 4,       9,                       // 22: +2, one line
        head(14, 1), 64 | 1,  2,       0,       1, 1,  // 24: 1 + (2 << 6) = 129: −64, long form
        head(13, 1), 64 | 63, 64 | 63, 64 | 63, 7,     // 26: a large negative delta: before line 1
    });
    const auto entries = decode_line_table(LineTableKind::locations, table, 100);
    CHECK(line_at(entries, 0) == 0);
    CHECK(line_at(entries, 2) == 101);
    CHECK(line_at(entries, 6) == 101);
    CHECK(line_at(entries, 21) == 101);
    CHECK(line_at(entries, 22) == 103);
    CHECK(line_at(entries, 24) == 39);
    CHECK(line_at(entries, 26) == 0);
    CHECK(line_at(entries, 28) == 0);
}

TEST_CASE("an empty table has no lines, except that lnotab starts on the first line") {
    CHECK(line_at(decode_line_table(LineTableKind::locations, {}, 7), 0) == 0);
    CHECK(line_at(decode_line_table(LineTableKind::linetable_310, {}, 7), 0) == 0);
    CHECK(line_at(decode_line_table(LineTableKind::lnotab, {}, 7), 0) == 7);
    CHECK(line_at({}, 5) == 0);
}

TEST_CASE("any bytes give sorted entries, no more than one a byte and two") {
    std::mt19937 random(7);
    for (int round = 0; round < 3000; ++round) {
        std::vector<std::byte> table(random() % 200);
        for (auto& byte : table) byte = static_cast<std::byte>(random());
        for (const auto kind :
             {LineTableKind::lnotab, LineTableKind::linetable_310, LineTableKind::locations}) {
            const auto entries = decode_line_table(kind, table, static_cast<std::uint32_t>(random()));
            CHECK(entries.size() <= table.size() + 2);
            for (std::size_t i = 1; i < entries.size(); ++i) CHECK(entries[i - 1].start < entries[i].start);
        }
    }
}
