#include "memattach/profile/hotspots.h"

#include <algorithm>

namespace memattach::profile {
namespace {

constexpr double kSmallestSharePct = 1;
constexpr std::size_t kMostPerMetric = 10;

bool heavier(const Hotspot& a, const Hotspot& b) {
    if (a.share_pct != b.share_pct) return a.share_pct > b.share_pct;
    return a.path != b.path ? a.path < b.path : a.line < b.line;
}

}  // namespace

std::vector<Hotspot> find_hotspots(const Profile& profile) {
    std::vector<Hotspot> memory;
    std::vector<Hotspot> cpu;
    for (const FileRow& file : profile.files) {
        if (file.path == kNoStack || file.path == kOtherCode) continue;
        for (const LineRow& row : file.lines) {
            const Figures& f = row.figures;
            const auto found = [&](const char* metric, double share_pct) {
                return Hotspot{file.path, row.function, metric, row.code, "", row.line, share_pct};
            };
            if (f.memory_pct.value_or(0) >= kSmallestSharePct && f.alloc_ci95 && f.alloc_bytes &&
                *f.alloc_bytes > *f.alloc_ci95) {
                memory.push_back(found("memory", *f.memory_pct));
            }
            if (f.cpu_pct.value_or(0) >= kSmallestSharePct && f.cpu_ci95 && *f.cpu_pct > *f.cpu_ci95) {
                cpu.push_back(found("cpu", *f.cpu_pct));
            }
        }
    }
    std::vector<Hotspot> all;
    for (std::vector<Hotspot>* metric : {&memory, &cpu}) {
        std::sort(metric->begin(), metric->end(), heavier);
        if (metric->size() > kMostPerMetric) metric->resize(kMostPerMetric);
        all.insert(all.end(), metric->begin(), metric->end());
    }
    std::sort(all.begin(), all.end(), heavier);
    return all;
}

}  // namespace memattach::profile
