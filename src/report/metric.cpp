#include "memattach/report/metric.h"

#include <algorithm>

namespace memattach::report {

std::string_view name_of(Metric metric) {
    switch (metric) {
        case Metric::cpu_samples:
            return "cpu";
        case Metric::wait_samples:
            return "wait";
        case Metric::alloc_bytes:
            return "allocated";
        case Metric::live_bytes:
            return "live";
        case Metric::peak_bytes:
            return "peak";
    }
    return "";
}

double weight_of(const profile::StackRow& stack, Metric metric) {
    switch (metric) {
        case Metric::cpu_samples:
            return static_cast<double>(stack.cpu_samples);
        case Metric::wait_samples:
            return static_cast<double>(stack.wait_samples);
        case Metric::alloc_bytes:
            return stack.alloc_bytes.value_or(0);
        case Metric::live_bytes:
            return stack.live_bytes.value_or(0);
        case Metric::peak_bytes:
            return stack.peak_bytes.value_or(0);
    }
    return 0;
}

std::vector<Metric> metrics_of(const profile::Profile& profile) {
    std::vector<Metric> metrics;
    for (const Metric metric : {Metric::cpu_samples, Metric::wait_samples, Metric::alloc_bytes,
                                Metric::live_bytes, Metric::peak_bytes}) {
        if (std::any_of(profile.stacks.begin(), profile.stacks.end(),
                        [&](const profile::StackRow& stack) { return weight_of(stack, metric) > 0; })) {
            metrics.push_back(metric);
        }
    }
    return metrics;
}

}  // namespace memattach::report
