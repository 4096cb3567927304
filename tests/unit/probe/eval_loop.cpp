#include "memattach/probe/eval_loop.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

using namespace memattach;

namespace {

constexpr std::uint64_t kHeader = 0x10000;

/// An unwind table (header, search table, descriptions) of functions of the given sizes from 0x100000 on.
class Table final : public process::Memory {
  public:
    explicit Table(const std::vector<std::uint32_t>& sizes) {
        put<std::uint32_t>(0x3b031b01);  // version 1, encodings 1b 03 3b
        put<std::int32_t>(0);
        put(static_cast<std::uint32_t>(sizes.size()));
        const std::size_t descriptions = 12 + 8 * sizes.size();
        std::uint32_t start = 0x100000;
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            put(static_cast<std::int32_t>(start - kHeader));
            put(static_cast<std::int32_t>(descriptions + 16 * i));
            start += sizes[i];
        }
        for (const std::uint32_t size : sizes) {
            put<std::uint32_t>(12);
            put<std::uint32_t>(0);
            put<std::uint32_t>(0);
            put(size);
        }
    }
    std::size_t read_up_to(base::Address from, std::span<std::byte> out) const override {
        if (from.value() < kHeader || from.value() - kHeader > bytes.size()) return 0;
        const auto at = static_cast<std::size_t>(from.value() - kHeader);
        const std::size_t count = std::min(out.size(), bytes.size() - at);
        std::memcpy(out.data(), bytes.data() + at, count);
        return count;
    }
    std::vector<std::byte> bytes;

  private:
    template <typename T>
    void put(T value) {
        const auto* from = reinterpret_cast<const std::byte*>(&value);
        bytes.insert(bytes.end(), from, from + sizeof(T));
    }
};

std::optional<probe::CodeRange> find(const Table& table) {
    return probe::find_eval_loop(table, base::Address(kHeader), base::Address(0x100000),
                                 base::Address(0x800000));
}

}  // namespace

TEST_CASE("the eval loop is the function that is larger than all others") {
    const auto found = find(Table({100, 30000, 80000, 32000}));
    REQUIRE(found);
    CHECK(found->start == base::Address(0x100000 + 30100));
    CHECK(found->end == base::Address(0x100000 + 110100));
}

TEST_CASE("where no function stands out, none is taken") {
    CHECK_FALSE(find(Table({80000, 100, 79000})));
    CHECK_FALSE(find(Table({100, 200, 1000})));
    CHECK_FALSE(find(Table({})));
    CHECK_FALSE(find(Table({100, 0x7fffffff})));  // reaches beyond the text
}

TEST_CASE("a table that was changed anywhere, or cut, is survived") {
    const Table whole({100, 30000, 80000, 32000});
    std::mt19937 random(3);
    for (int i = 0; i < 3000; ++i) {
        Table table({100, 30000, 80000, 32000});
        for (int j = 0; j < 4; ++j)
            table.bytes[random() % table.bytes.size()] = static_cast<std::byte>(random());
        table.bytes.resize(random() % (table.bytes.size() + 1));
        if (const auto found = find(table)) CHECK(found->start < found->end);
    }
}
