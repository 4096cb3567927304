#pragma once

#include "memattach/profile/profile.h"

namespace memattach::profile {

/// Calls `visit(name, member)` for each figure, with its name in JSON: the one list of them.
template <typename FiguresOrConst, typename Visitor>
void visit_figures(FiguresOrConst& f, Visitor&& visit) {
    visit("alloc_bytes", f.alloc_bytes);
    visit("alloc_ci95", f.alloc_ci95);
    visit("alloc_count", f.alloc_count);
    visit("alloc_count_ci95", f.alloc_count_ci95);
    visit("freed_bytes", f.freed_bytes);
    visit("freed_ci95", f.freed_ci95);
    visit("live_bytes", f.live_bytes);
    visit("live_ci95", f.live_ci95);
    visit("live_unconfirmed_bytes", f.live_unconfirmed_bytes);
    visit("peak_bytes", f.peak_bytes);
    visit("peak_ci95", f.peak_ci95);
    visit("temporary_bytes", f.temporary_bytes);
    visit("temporary_ci95", f.temporary_ci95);
    visit("resident_bytes", f.resident_bytes);
    visit("growth_bytes_per_min", f.growth_bytes_per_min);
    visit("growth_ci95", f.growth_ci95);
    visit("memory_pct", f.memory_pct);
    visit("memory_ci95", f.memory_ci95);
    visit("alloc_total_bytes", f.alloc_total_bytes);
    visit("alloc_total_ci95", f.alloc_total_ci95);
    visit("cpu_pct", f.cpu_pct);
    visit("cpu_ci95", f.cpu_ci95);
    visit("python_pct", f.python_pct);
    visit("native_pct", f.native_pct);
    visit("system_pct", f.system_pct);
    visit("gil_pct", f.gil_pct);
    visit("cpu_samples", f.cpu_samples);
    visit("wait_samples", f.wait_samples);
    visit("cpu_total_pct", f.cpu_total_pct);
}

}  // namespace memattach::profile
