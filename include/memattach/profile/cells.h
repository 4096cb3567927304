#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "memattach/profile/stacks.h"
#include "memattach/trace/events.h"

namespace memattach::profile {

/// Where figures are gathered: one cell for each distinct (stack, process or thread). Rows of lines,
/// functions, threads and stacks are sums over cells.
enum class CellId : std::uint32_t {};

struct CpuCounts {
    std::uint64_t samples = 0;  ///< on CPU; the others below but `wait` are parts of it
    std::uint64_t python = 0;
    std::uint64_t native = 0;
    std::uint64_t system = 0;
    std::uint64_t gil = 0;
    std::uint64_t wait = 0;

    void add(const trace::CpuSample& sample);
    CpuCounts& operator+=(const CpuCounts& other);
};

struct Cell {
    StackId stack{};
    std::int32_t pid = 0;
    std::int32_t tid = 0;  ///< 0 where threads are not told apart
    CpuCounts cpu;
};

class CellTable {
  public:
    /// tid 0: threads are not told apart.
    CellId find(StackId stack, std::int32_t pid, std::int32_t tid);
    [[nodiscard]] Cell& at(CellId id) { return cells_.at(static_cast<std::size_t>(id)); }
    [[nodiscard]] const std::vector<Cell>& all() const { return cells_; }

  private:
    std::vector<Cell> cells_;
    std::vector<std::vector<std::uint32_t>> by_stack_;  ///< the cells of each stack, nearly always one
};

}  // namespace memattach::profile
