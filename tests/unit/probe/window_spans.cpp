#include "../../../src/probe/window_spans.h"

#include <doctest/doctest.h>

namespace memattach::probe {
namespace {

std::vector<trace::Window> windows_of(
    std::initializer_list<std::pair<std::uint64_t, std::uint64_t>> own_and_span) {
    std::vector<trace::Window> windows;
    for (const auto& [own_ns, span_own_ns] : own_and_span) {
        trace::Window& window = windows.emplace_back();
        window.id = windows.size();
        window.end_ns = 1000 * windows.size();
        window.own_ns = own_ns;
        window.span_own_ns = span_own_ns;
    }
    return windows;
}

double sum(const std::vector<trace::Window>& windows) {
    double all = 0;
    for (const trace::Window& window : windows) all += static_cast<double>(window.span_own_ns);
    return all;
}

}  // namespace

TEST_CASE("windows of about one length share their spans, others keep their own") {
    auto windows = windows_of(
        {{100'000, 10'000'000}, {50'000, 15'000'000}, {100'000, 30'000'000}, {120'000, 24'000'000}});
    share_spans(windows);
    CHECK(windows[0].span_own_ns == 20'000'000);
    CHECK(windows[1].span_own_ns == 15'000'000);
    CHECK(windows[2].span_own_ns == 20'000'000);
    CHECK(windows[3].span_own_ns == 24'000'000);
}

TEST_CASE("a part of a very short window doesn't stand for much more than one of the others") {
    auto windows = windows_of(
        {{100'000, 10'000'000}, {2'000, 10'000'000}, {100'000, 10'000'000}, {100'000, 10'000'000}});
    share_spans(windows);
    const double weight = 40e6 / 302e3;
    CHECK(static_cast<double>(windows[1].span_own_ns) == doctest::Approx(6 * weight * 2'000));
    CHECK(sum(windows) == doctest::Approx(40e6));
    CHECK(windows[0].span_own_ns == windows[2].span_own_ns);
}

TEST_CASE("windows without any time, and no windows, are left alone") {
    auto windows = windows_of({{0, 10'000'000}, {0, 5'000'000}});
    share_spans(windows);
    CHECK(sum(windows) == 15e6);
    windows.clear();
    share_spans(windows);
    CHECK(windows.empty());
}

}  // namespace memattach::probe
