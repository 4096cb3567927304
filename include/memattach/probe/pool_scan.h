/// Finds the pools of CPython's small-object allocator in a process's memory, without a symbol to start from:
/// they begin at multiples of their size in memory that the process has mapped for itself, and their headers
/// are not to be mistaken (src/probe/pymalloc_pool.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"
#include "memattach/process/memory.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

/// One pool in use.
struct SmallPool {
    std::uint64_t address = 0;
    std::uint32_t size_class = 0, in_use = 0;
};

/// What a look at all pools has found.
struct PoolCounts {
    std::array<std::uint64_t, trace::LiveBlocks::kObjectClasses> blocks{};
    std::vector<SmallPool> pools;
    std::uint64_t swapped_out = 0;  ///< places where a pool may be, and that weren't looked at
};

class PoolScan {
  public:
    /// So many places may be looked at; where there are more the heap isn't counted.
    static constexpr std::size_t kMostPlaces = 400'000;

    /// `pid`: whose /proc/PID/pagemap says which pages are there; without it all that is mapped is read.
    PoolScan(int pid, const process::Memory& memory);
    /// Nothing where that would take too long.
    [[nodiscard]] std::optional<PoolCounts> count(const std::vector<process::Mapping>& maps);
    [[nodiscard]] std::uint64_t pool_bytes() const { return pool_bytes_; }

  private:
    [[nodiscard]] std::optional<PoolCounts> count(const std::vector<process::Mapping>& maps,
                                                  std::uint64_t pool_bytes);
    bool find_places(const process::Mapping& mapping, std::uint64_t pool_bytes, PoolCounts& counts);

    const process::Memory& memory_;
    base::UniqueFd pagemap_;
    std::uint64_t pool_bytes_ = 0;
    std::vector<std::uint64_t> places_, pages_;
};

}  // namespace memattach::probe
