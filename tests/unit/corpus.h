#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

namespace memattach::test {

/// The bytes of tests/fuzz/corpus/NAME.
inline std::vector<std::byte> corpus(const std::string& name) {
    std::ifstream file(MEMATTACH_TESTS "/fuzz/corpus/" + name, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    REQUIRE_FALSE(bytes.empty());
    const auto raw = std::as_bytes(std::span(bytes));
    return {raw.begin(), raw.end()};
}

}  // namespace memattach::test
