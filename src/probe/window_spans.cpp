#include "window_spans.h"

#include <algorithm>

namespace memattach::probe {
namespace {

/// So much longer than another one a window may be and share its span.
constexpr double kAlike = 1.5;
/// So many times what they stand for on average is the most that a part of a window does.
constexpr double kMostWeight = 6;

struct Sums {
    double own_ns = 0, span_ns = 0;
    void add(const trace::Window& window) {
        own_ns += static_cast<double>(window.own_ns);
        span_ns += static_cast<double>(window.span_own_ns);
    }
    [[nodiscard]] double weight() const { return span_ns / own_ns; }
};

void set_span(trace::Window& window, double weight) {
    window.span_own_ns = static_cast<std::uint64_t>(weight * static_cast<double>(window.own_ns));
}

/// Gives what is above the limit to all the others.
void limit_weights(std::vector<trace::Window>& windows) {
    Sums all;
    for (const trace::Window& window : windows) all.add(window);
    if (!(all.own_ns > 0)) return;
    const double most = kMostWeight * all.weight();
    const auto is_above = [&](const trace::Window& window) {
        return static_cast<double>(window.span_own_ns) > most * static_cast<double>(window.own_ns);
    };
    Sums below;
    double excess_ns = 0;
    for (const trace::Window& window : windows) {
        if (is_above(window)) {
            excess_ns += static_cast<double>(window.span_own_ns) - most * static_cast<double>(window.own_ns);
        } else {
            below.add(window);
        }
    }
    if (!(excess_ns > 0) || !(below.span_ns > 0)) return;
    for (trace::Window& window : windows) {
        if (is_above(window)) {
            set_span(window, most);
        } else {
            window.span_own_ns = static_cast<std::uint64_t>(static_cast<double>(window.span_own_ns) *
                                                            (1 + excess_ns / below.span_ns));
        }
    }
}

}  // namespace

void share_spans(std::vector<trace::Window>& windows) {
    std::sort(windows.begin(), windows.end(),
              [](const trace::Window& a, const trace::Window& b) { return a.own_ns < b.own_ns; });
    for (auto first = windows.begin(); first != windows.end();) {
        const auto last = std::find_if(first, windows.end(), [&](const trace::Window& window) {
            return static_cast<double>(window.own_ns) > kAlike * static_cast<double>(first->own_ns);
        });
        Sums alike;
        for (auto window = first; window != last; ++window) alike.add(*window);
        for (; first != last; ++first)
            if (alike.own_ns > 0) set_span(*first, alike.weight());
    }
    limit_weights(windows);
    std::sort(windows.begin(), windows.end(),
              [](const trace::Window& a, const trace::Window& b) { return a.end_ns < b.end_ns; });
}

}  // namespace memattach::probe
