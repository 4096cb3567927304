#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "memattach/process/memory.h"

namespace memattach::test {

/// Memory made of separate regions with nothing between them: a read that leaves a region ends short there,
/// as at a guard page.
class FakeMemory final : public process::Memory {
  public:
    void map(base::Address at, std::vector<std::byte> bytes) { regions_[at.value()] = std::move(bytes); }

    /// Maps zeros where nothing is mapped yet; write() needs mapped bytes.
    void map_zeros(base::Address at, std::size_t bytes) { map(at, std::vector<std::byte>(bytes)); }

    template <typename T>
    void write(base::Address at, const T& value) {
        auto* region = find(at);
        const std::uint64_t offset = at.value() - start_of(at);
        std::memcpy(region->data() + offset, &value, sizeof value);
    }

    [[nodiscard]] std::size_t read_up_to(base::Address from, std::span<std::byte> out) const override {
        ++reads;
        const auto after = regions_.upper_bound(from.value());
        if (after == regions_.begin()) return 0;
        const auto& [start, bytes] = *std::prev(after);
        const std::uint64_t offset = from.value() - start;
        if (offset >= bytes.size()) return 0;
        const std::size_t count = std::min<std::size_t>(out.size(), bytes.size() - offset);
        if (count > 0) std::memcpy(out.data(), bytes.data() + offset, count);
        return count;
    }

    mutable std::size_t reads = 0;

  private:
    [[nodiscard]] std::uint64_t start_of(base::Address at) const {
        return std::prev(regions_.upper_bound(at.value()))->first;
    }
    std::vector<std::byte>* find(base::Address at) { return &regions_.at(start_of(at)); }

    std::map<std::uint64_t, std::vector<std::byte>> regions_;
};

}  // namespace memattach::test
