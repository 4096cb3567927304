#include "memattach/profile/cells.h"

namespace memattach::profile {

void CpuCounts::add(const trace::CpuSample& sample) {
    if (!sample.on_cpu) {
        ++wait;
        return;
    }
    ++samples;
    if (sample.holds_gil) ++gil;
    switch (sample.mode) {
        case trace::CpuMode::python:
            ++python;
            break;
        case trace::CpuMode::native:
            ++native;
            break;
        case trace::CpuMode::system:
            ++system;
            break;
        case trace::CpuMode::unknown:
            break;
    }
}

CpuCounts& CpuCounts::operator+=(const CpuCounts& other) {
    samples += other.samples;
    python += other.python;
    native += other.native;
    system += other.system;
    gil += other.gil;
    wait += other.wait;
    return *this;
}

CellId CellTable::find(StackId stack, std::int32_t pid, std::int32_t tid) {
    const auto index = static_cast<std::size_t>(stack);
    if (index >= by_stack_.size()) by_stack_.resize(index + 1);
    std::vector<std::uint32_t>& candidates = by_stack_[index];
    for (std::size_t i = candidates.size(); i-- > 0;) {
        const Cell& cell = cells_[candidates[i]];
        if (cell.pid == pid && cell.tid == tid) return static_cast<CellId>(candidates[i]);
    }
    const auto id = static_cast<std::uint32_t>(cells_.size());
    cells_.push_back({stack, pid, tid, {}});
    candidates.push_back(id);
    return static_cast<CellId>(id);
}

}  // namespace memattach::profile
