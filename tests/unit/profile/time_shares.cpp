#include "memattach/profile/time_shares.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

namespace memattach::profile {
namespace {

using trace::AllocKind;

/// main() calls three parts in turn, each of which calls the same library function.
struct Program {
    StackTable stacks;
    std::vector<StackId> parts;

    Program() {
        for (std::uint32_t line : {10, 20, 30}) parts.push_back(stack(line, 5));
    }
    StackId stack(std::uint32_t line, std::uint32_t innermost) {
        return stacks.intern({{trace::FunctionId(2), innermost}, {trace::FunctionId(1), line}});
    }
};

double sum(const std::vector<TimeShares::Place>& windows) {
    double all = 0;
    for (const auto& window : windows) all += window.span_ns;
    return all;
}

struct Spread {
    double mean = 0, deviation = 0;
};

/// What a part that takes a tenth of the time has by ten seconds' windows, relative to what it has.
Spread tenth(bool with_samples, std::mt19937& random) {
    constexpr int kRuns = 200, kSeconds = 10, kWindows = 20, kSamples = 100;
    constexpr double kSpan = 5e7;
    std::discrete_distribution<std::size_t> part{1, 3, 6};
    Program program;
    double all = 0;
    double squares = 0;
    for (int run = 0; run < kRuns; ++run) {
        TimeShares shares;
        double ns = 0;
        for (std::uint64_t s = 0; s < kSeconds; ++s) {
            for (int i = 0; with_samples && i < kSamples; ++i)
                shares.add(s * 1'000'000'000 + 1, program.parts[part(random)]);
            std::vector<TimeShares::Place> windows;
            for (int i = 0; i < kWindows; ++i)
                windows.push_back({program.parts[part(random)], s * 1'000'000'000, kSpan});
            shares.spread(program.stacks, AllocKind::malloc, windows);
            CHECK(sum(windows) == doctest::Approx(kWindows * kSpan));
            for (const auto& window : windows) ns += window.stack == program.parts[0] ? window.span_ns : 0;
        }
        const double relative = ns / (0.1 * kSpan * kWindows * kSeconds);
        all += relative;
        squares += relative * relative;
    }
    const double mean = all / kRuns;
    return {mean, std::sqrt(squares / kRuns - mean * mean)};
}

}  // namespace

TEST_CASE("windows stand for the time of the parts that they are in, which samples know better") {
    std::mt19937 random(1);
    const Spread alone = tenth(false, random);
    const Spread spread = tenth(true, random);
    CHECK(alone.mean == doctest::Approx(1).epsilon(0.05));
    CHECK(spread.mean == doctest::Approx(1).epsilon(0.05));
    CHECK(spread.deviation < 0.65 * alone.deviation);  // by the samples alone: √(200 / 1000)
}

TEST_CASE("without samples, or where they don't tell windows apart, windows stand for what they did") {
    Program program;
    TimeShares shares;
    const std::vector<TimeShares::Place> before = {{program.parts[0], 1, 5}, {program.parts[1], 2, 7}};
    auto windows = before;
    shares.spread(program.stacks, AllocKind::malloc, windows);
    for (int i = 0; i < 100; ++i) shares.add(3, program.stack(40, 6));
    shares.spread(program.stacks, AllocKind::malloc, windows);
    for (std::size_t i = 0; i < before.size(); ++i)
        CHECK(windows[i].span_ns == doctest::Approx(before[i].span_ns));
}

TEST_CASE("a part without windows leaves its time to the others, and no window stands for too much") {
    Program program;
    TimeShares shares;
    // Half of the time is the third part's, which no window has met; the first has 1 % and most windows.
    for (int i = 0; i < 1000; ++i) shares.add(2, program.parts[i % 100 == 0 ? 0 : i % 2 == 0 ? 2 : 1]);
    std::vector<TimeShares::Place> windows;
    for (std::uint64_t i = 0; i < 40; ++i) windows.push_back({program.parts[i % 8 == 0 ? 1 : 0], i, 1e6});
    shares.spread(program.stacks, AllocKind::malloc, windows);
    CHECK(sum(windows) == doctest::Approx(40e6));
    CHECK(windows[0].span_ns / windows[1].span_ns == doctest::Approx(12));
}

TEST_CASE("what was before the first window, and windows of another kind, have no part in it") {
    Program program;
    TimeShares shares;
    for (int i = 0; i < 100; ++i) shares.add(1, program.parts[0]);
    std::vector<TimeShares::Place> windows;
    for (std::uint64_t i = 0; i < 20; ++i) windows.push_back({program.parts[i % 2], 10 + i, 1e6});
    auto others = windows;
    shares.spread(program.stacks, AllocKind::malloc, windows);
    CHECK(windows[0].span_ns == doctest::Approx(1e6));
    for (int i = 0; i < 100; ++i) shares.add(40, program.parts[i % 4 == 0 ? 0 : 1]);
    shares.spread(program.stacks, AllocKind::object, others);
    CHECK(others[1].span_ns / others[0].span_ns == doctest::Approx(3).epsilon(0.1));
}

TEST_CASE("more samples than are remembered: those of all the windows' time count, not the last ones alone") {
    Program program;
    TimeShares shares;
    std::vector<TimeShares::Place> windows;
    for (std::uint64_t i = 0; i < 40; ++i) windows.push_back({program.parts[i % 2], 1 + i, 1e6});
    shares.spread(program.stacks, AllocKind::malloc, windows);
    for (std::uint64_t i = 0; i < 20'000; ++i) shares.add(50 + i, program.parts[i < 10'000 ? 0 : 1]);
    shares.spread(program.stacks, AllocKind::malloc, windows);
    CHECK(windows[0].span_ns / windows[1].span_ns == doctest::Approx(1).epsilon(0.1));
}

TEST_CASE("parts are told apart where their stacks part, however deep") {
    StackTable stacks;
    const auto deep = [&](std::uint32_t branch, std::uint32_t twig) {
        trace::Stack stack{{trace::FunctionId(9), twig}, {trace::FunctionId(8), branch}};
        for (std::uint32_t i = 0; i < 30; ++i) stack.push_back({trace::FunctionId(i), i});
        return stacks.intern(stack);
    };
    TimeShares shares;
    for (std::uint32_t i = 0; i < 300; ++i) shares.add(1, deep(i % 3 == 0 ? 1 : 2, i % 2));
    std::vector<TimeShares::Place> windows;
    for (std::uint32_t i = 0; i < 60; ++i) windows.push_back({deep(i % 2 + 1, i % 4 / 2), 0, 1e6});
    shares.spread(stacks, AllocKind::malloc, windows);
    CHECK(windows[1].span_ns / windows[0].span_ns == doctest::Approx(2).epsilon(0.1));
    CHECK(windows[3].span_ns / windows[2].span_ns == doctest::Approx(2).epsilon(0.1));
}

}  // namespace memattach::profile
