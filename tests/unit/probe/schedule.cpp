#include "memattach/probe/schedule.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

using namespace memattach;
using probe::Moment;
using probe::Schedule;

namespace {

/// One allocation of a simulated program: the own time that leads up to it, the line that makes it.
struct Step {
    double gap_ns;
    int line;
    double bytes;
    trace::AllocKind kind = trace::AllocKind::object;
};

/// What a stop costs the simulated thread. The defaults are what was measured on a 2-core virtual machine.
struct Costs {
    double cpu_ns = 3'800, cpu_spread_ns = 400, wall_ns = 7'000, stopped_ns = 4'500, sample_ns = 27'000;
    double cold_ns = 250;      ///< what the program runs slower by after a stop
    double copy_ns = 300'000;  ///< to hold the thread for a shadow
    bool shadows = true;
    bool shadows_fail = false;  ///< they are promised for 50 ms, and never come
    double reach_ns = 1e9;      ///< how far a shadow can go
    double user_share = 1;      ///< of the program's time, outside of the kernel
    double missed = 0;          ///< so many threads sleep when they have been stopped for a shadow
    double spoilt = 0;          ///< so many shadows go astray
    double work_ns = 1e6;       ///< of another processor, for a shadow
    double rest_ns = 0;         ///< of the program, after each millisecond of its own time
};

struct Result {
    std::map<int, double> truth, estimate;
    Schedule::Figures figures;
    std::uint64_t samples = 0;
    double spread = 0;  ///< the largest that a window told of its own time
    double shadow_spread = 0;
    [[nodiscard]] double ratio(int line) const { return estimate.at(line) / truth.at(line); }
};

/// Runs a program for `own_s` seconds of its own time under a schedule, one thread, as an engine would.
Result run(const std::function<Step()>& program, double own_s, probe::SchedulePolicy policy = {},
           Costs costs = {}) {
    double wall = 1e9, cpu = 5e8, own = 0;
    const auto now = [&] {
        return Moment{static_cast<std::uint64_t>(wall), static_cast<std::uint64_t>(cpu)};
    };
    std::mt19937_64 random(policy.seed + 1000);
    std::gamma_distribution<double> spread(std::pow(costs.cpu_ns / costs.cpu_spread_ns, 2),
                                           std::pow(costs.cpu_spread_ns, 2) / costs.cpu_ns);
    Schedule schedule(policy, now());
    schedule.set_user_share(costs.user_share);
    probe::ByteSampler sampler(policy.seed);
    Result result;
    struct Pending {
        trace::AllocKind kind;
        int line;
        double weight;
    };
    std::vector<Pending> pending;
    struct {
        bool runs = false;
        probe::ShadowWindow window;
        double length_ns = 0, until_own = 0, hits = 0, bytes = 0;
        std::map<int, double> lines;
    } shadow;
    std::uniform_real_distribution<double> chance;
    const auto end_shadow = [&] {
        if (chance(random) < costs.spoilt) {
            probe::ShadowResult astray;
            astray.spoilt = true;
            schedule.group(std::exchange(shadow, {}).window.group).copied(astray);
            return;
        }
        const double length = shadow.length_ns;
        for (const auto& [line, bytes] : shadow.lines)
            result.estimate[line] += bytes * shadow.window.span_ns / length;
        schedule.group(shadow.window.group)
            .copied({true, length >= shadow.window.own_ns, length, shadow.hits, shadow.bytes, costs.work_ns});
        shadow = {};
    };
    probe::Plan plan;
    const auto settle = [&] {
        for (const trace::Window& w : schedule.take_closed()) {
            const double scale = static_cast<double>(w.span_own_ns) / static_cast<double>(w.own_ns);
            result.spread = std::max(result.spread, w.own_spread);
            for (const Pending& p : pending) {
                if (p.kind == w.kind) result.estimate[p.line] += p.weight * scale;
            }
            std::erase_if(pending, [&](const Pending& p) { return p.kind == w.kind; });
        }
    };
    const auto step = [&] {
        const probe::Plan before = plan;
        schedule.allow_copies(costs.shadows && !(costs.shadows_fail && own > 50e6),
                              !shadow.runs && !costs.shadows_fail);
        plan = schedule.step(now());
        for (const auto kind :
             {trace::AllocKind::malloc, trace::AllocKind::object, trace::AllocKind::large}) {
            const probe::GroupPlan& group = plan.of(kind);
            if (group.window != 0 && group.window != before.of(kind).window)
                schedule.group(kind).armed(now());
            if (!group.copy || shadow.runs) continue;
            schedule.group(kind).copy_asked(now());
            if (chance(random) < costs.missed) {
                wall += costs.wall_ns;
                schedule.other_stop(kind, static_cast<std::uint64_t>(costs.wall_ns));
                schedule.group(kind).copy_missed(now());
                continue;
            }
            const probe::ShadowWindow window = schedule.group(kind).copy();
            result.shadow_spread = std::max(result.shadow_spread, window.own_spread);
            const double length = std::min(window.own_ns, costs.reach_ns);
            // The thread needs longer for the same: the shadow doesn't do what the kernel does.
            shadow = {true, window, length, own + length / costs.user_share, 0, 0, {}};
            wall += costs.copy_ns;
            schedule.other_stop(kind, static_cast<std::uint64_t>(costs.copy_ns));
        }
        settle();
    };
    step();
    const auto stop = [&](double stopped) {
        cpu += spread(random);
        wall += costs.wall_ns + stopped;
    };
    double cold = 0;
    double rested_own = 0;
    while (own < own_s * 1e9) {
        if (costs.rest_ns > 0 && own - rested_own > 1e6) {
            rested_own = own;
            wall += costs.rest_ns;
            step();
        }
        Step next = program();
        double left = next.gap_ns;
        while (wall + left > static_cast<double>(plan.wake_ns)) {
            const double part = std::max(static_cast<double>(plan.wake_ns) - wall, 0.0);
            wall += part, cpu += part, own += part, left -= part;
            step();
        }
        wall += left + cold, cpu += left + cold, own += left;
        cold = 0;
        // Large blocks are malloc's while that group sees to all of them.
        if (next.kind == trace::AllocKind::large && !schedule.has_large())
            next.kind = trace::AllocKind::malloc;
        if (shadow.runs && own >= shadow.until_own) end_shadow();
        if (shadow.runs && next.kind == shadow.window.group) {
            ++shadow.hits;
            shadow.bytes += next.bytes;
            shadow.lines[next.line] += next.bytes;
        }
        result.truth[next.line] += next.bytes;
        result.estimate[next.line];
        if (!plan.of(next.kind).armed) continue;
        probe::GroupSchedule& group = schedule.group(next.kind);
        const double r = group.sampling_bytes();
        bool keep = sampler.keep(static_cast<std::uint64_t>(next.bytes), r);
        stop(0);  // the way in and out; when it has arrived, half of it is still to come: no matter here
        cold = costs.cold_ns;
        bool counts = true;
        if (group.is_windowed()) {
            const bool sure = group.surely_counts(now().wall_ns);
            const probe::Arrival arrival = group.arrive(now());
            if (sure) REQUIRE(arrival == probe::Arrival::counts);
            counts = arrival == probe::Arrival::counts;
            if (arrival == probe::Arrival::closing) group.close(now());
        }
        keep = keep && counts;
        const double stopped = costs.stopped_ns + (keep ? costs.sample_ns : 0);
        wall += stopped;
        if (keep) {
            ++result.samples;
            const double weight = next.bytes / -std::expm1(-next.bytes / r);
            if (group.is_windowed()) {
                pending.push_back({next.kind, next.line, weight});
            } else {
                result.estimate[next.line] += weight;
            }
        }
        if (counts) {
            schedule.hit({next.kind, static_cast<std::uint64_t>(next.bytes), keep,
                          static_cast<std::uint64_t>(stopped)});
        } else {
            schedule.other_stop(next.kind, static_cast<std::uint64_t>(stopped));
        }
        if (schedule.wants_null_trap()) {
            const double before = cpu;
            stop(0);
            schedule.null_trap(next.kind, static_cast<std::uint64_t>(cpu - before),
                               static_cast<std::uint64_t>(costs.wall_ns), !keep);
        }
        step();
    }
    schedule.finish(now());
    settle();
    result.figures = schedule.figures(now());
    return result;
}

/// Blocks of 64 bytes, `gap` ns apart, from three lines with shares 60, 30 and 10 %.
std::function<Step()> steady(double gap, trace::AllocKind kind = trace::AllocKind::object) {
    return [gap, kind, i = 0]() mutable {
        static constexpr int kLines[] = {1, 2, 1, 1, 2, 1, 3, 1, 2, 1};
        return Step{gap, kLines[i++ % 10], 64, kind};
    };
}

}  // namespace

TEST_CASE("byte sampling keeps large blocks always and small ones in proportion to their size") {
    probe::ByteSampler sampler(7);
    int small = 0;
    for (int i = 0; i < 100'000; ++i) small += sampler.keep(1000, 100'000) ? 1 : 0;
    CHECK(small == doctest::Approx(995).epsilon(0.15));
    for (int i = 0; i < 1000; ++i) CHECK(sampler.keep(10'000'000, 100'000));
    int half = 0;
    for (int i = 0; i < 100'000; ++i) half += sampler.keep(100'000, 100'000) ? 1 : 0;
    CHECK(half == doctest::Approx(63'212).epsilon(0.02));
}

TEST_CASE("a light target is armed all the time and counted exactly") {
    const Result r = run(steady(3e6), 20);
    CHECK(r.figures.object.coverage > 0.9);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("small objects at any rate: the budget holds and the estimate is true") {
    for (const double gap : {1e6, 1e5, 1e4, 2000.0}) {
        CAPTURE(gap);
        const Result r = run(steady(gap), gap < 1e4 ? 4 : 10);
        CAPTURE(r.figures.hits);
        CAPTURE(r.figures.object.windows);
        CAPTURE(r.figures.object.coverage);
        CHECK(r.figures.overhead < 0.07);
        CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.1));
        CHECK(r.ratio(2) == doctest::Approx(1).epsilon(0.12));
        CHECK(r.ratio(3) == doctest::Approx(1).epsilon(0.25));
    }
}

TEST_CASE("malloc is watched without a break while that fits the budget") {
    const Result r = run(steady(1e6, trace::AllocKind::malloc), 10);
    CHECK(r.figures.malloc.coverage > 0.99);
    CHECK(r.figures.overhead < 0.05);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.1));
}

TEST_CASE("five million mallocs a second: windows for shadows, within the budget, and true") {
    const Result r = run(steady(200, trace::AllocKind::malloc), 4);
    CAPTURE(r.figures.malloc.copied_windows);
    CHECK(r.figures.malloc.coverage < 0.05);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.figures.malloc.copied_windows > r.figures.malloc.windows / 2);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("five million mallocs a second and no shadows: the budget holds, the bytes are rough") {
    Costs costs;
    costs.shadows = false;
    const Result r = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(r.figures.malloc.copied_windows == 0);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.figures.overhead > 0.02);
    CHECK(r.ratio(2) / r.ratio(1) == doctest::Approx(1).epsilon(0.15));
}

TEST_CASE("where shadows turn out not to be there, windows go on by the clock") {
    Costs costs;
    costs.shadows_fail = true;
    const Result r = run(steady(200), 4, {}, costs);
    CHECK(r.figures.object.copied_windows == 0);
    CHECK(r.figures.object.windows > 20);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.ratio(2) / r.ratio(1) == doctest::Approx(1).epsilon(0.15));
}

TEST_CASE("windows are no longer than shadows can go") {
    Costs costs;
    costs.reach_ns = 120e3;
    const Result r = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(r.figures.malloc.copied_windows > r.figures.malloc.windows / 2);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("a program that rests has more shadows in the same time of its own, as they are another's work") {
    Costs costs;
    costs.work_ns = 10e6;
    const Result busy = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(busy.figures.malloc.copied_windows > 20);
    costs.rest_ns = 3e6;
    const Result resting = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(resting.figures.malloc.copied_windows > 2 * busy.figures.malloc.copied_windows);
    CHECK(resting.figures.overhead < 0.07);
    CHECK(resting.ratio(1) == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("shadows stand for the time outside of the kernel") {
    Costs costs;
    costs.user_share = 0.6;
    const Result r = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(r.figures.malloc.copied_windows > r.figures.malloc.windows / 2);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.05));
    // What a program that is in the kernel for much of its time does outside is less sure.
    costs.user_share = 1;
    const Result outside = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(r.shadow_spread > outside.shadow_spread + 0.3);
}

TEST_CASE(
    "threads that sleep when they are stopped for a shadow, and shadows that go astray, are made up for") {
    Costs costs;
    costs.missed = 0.7;
    const Result asleep = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(asleep.figures.malloc.copied_windows > 40);
    CHECK(asleep.figures.overhead < 0.07);
    CHECK(asleep.ratio(1) == doctest::Approx(1).epsilon(0.05));
    costs.missed = 0;
    costs.spoilt = 0.5;
    const Result astray = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(astray.figures.malloc.copied_windows > astray.figures.malloc.dense_windows);
    CHECK(astray.ratio(1) == doctest::Approx(1).epsilon(0.08));
}

TEST_CASE("shadows that can't go far are left to hits that the clock can't tell apart") {
    Costs costs;
    costs.reach_ns = 20e3;
    costs.cold_ns = 750;
    const Result apart = run(steady(2'500, trace::AllocKind::malloc), 10, {}, costs);
    CHECK(apart.figures.malloc.copied_windows < apart.figures.malloc.windows / 4);
    CHECK(apart.figures.overhead < 0.07);
    CHECK(apart.ratio(1) == doctest::Approx(1).epsilon(0.4));
    const Result dense = run(steady(200, trace::AllocKind::malloc), 4, {}, costs);
    CHECK(dense.figures.malloc.copied_windows > dense.figures.malloc.windows / 2);
    CHECK(dense.ratio(1) == doctest::Approx(1).epsilon(0.1));
}

TEST_CASE("where faults and stops are dear, bytes are unsure, and windows say so") {
    Costs costs;
    costs.reach_ns = 1e3;
    costs.cpu_ns = 12'000;
    costs.cpu_spread_ns = 4'000;
    costs.cold_ns = 6'000;
    for (const double gap : {150.0, 600.0}) {
        CAPTURE(gap);
        const Result r = run(steady(gap), 10, {}, costs);
        CHECK(r.figures.overhead < 0.08);
        CHECK(r.figures.object.windows > r.figures.object.copied_windows);
        CHECK(r.spread > 1);
        CHECK(std::abs(r.ratio(1) - 1) < 2 * r.spread * r.ratio(1));
        CHECK(r.ratio(2) / r.ratio(1) == doctest::Approx(1).epsilon(0.3));
    }
}

TEST_CASE("a line that allocates in bursts is not counted for less than one that doesn't") {
    // 1 ms of quiet with a block every 20 µs from line 1, then 1 ms of line 2 every 500 ns.
    double t = 0;
    const Result r = run(
        [&t] {
            const bool burst = std::fmod(t, 2e6) > 1e6;
            const double gap = burst ? 500 : 20'000;
            t += gap;
            return Step{gap, burst ? 2 : 1, 64};
        },
        10);
    CAPTURE(r.figures.object.windows);
    CAPTURE(r.figures.object.copied_windows);
    CAPTURE(r.figures.hits);
    CAPTURE(r.figures.object.coverage);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.25));
    CHECK(r.ratio(2) == doctest::Approx(1).epsilon(0.25));
}

TEST_CASE("an idle program that wakes up to a storm: the first windows are small") {
    // A second with nothing, then five million a second.
    double t = 0;
    const Result r = run(
        [&t] {
            const double gap = t < 1e9 ? 1e7 : 200;
            t += gap;
            return Step{gap, 1, 64};
        },
        2);
    CHECK(r.figures.overhead < 0.07);
}

// The first windows are as long as a stop is believed to cost, and the clock goes backwards where that is too
// much: a request met a thousand stops.
TEST_CASE("a first window whose clock goes backwards ends all the same") {
    Moment now{1'000'000'000, 500'000'000};
    probe::StopClock clock(now);
    probe::GroupSchedule group({{trace::AllocKind::object}, false, 1 << 20, 1}, clock, 0.01, now);
    const auto pass = [&](std::uint64_t ns) { now.wall_ns += ns, now.cpu_ns += ns; };
    // Quiet so far, as between requests: each window may be longer than the last.
    int windows = 0;
    for (std::uint64_t window = 0; windows < 6;) {
        pass(5'000);
        const probe::GroupPlan plan = group.step(now);
        if (plan.window == 0 || plan.window == window) continue;
        window = plan.window;
        group.armed(now);
        ++windows;
    }
    int hits = 0;
    while (group.arrive(now) != probe::Arrival::closing && hits < 10'000) {
        ++hits;
        group.count_hit(64);
        group.charge(clock.add_stop(5'000, true));
        pass(3'000);  // of what is charged as 4,250
    }
    CHECK(hits > 30);
    CHECK(hits < 100);
}

TEST_CASE("bursts between milliseconds without: windows by the clock see more of them than shadows") {
    // 200 blocks of line 1, half a microsecond apart, and one of line 2 behind them, every ten milliseconds.
    int i = 0;
    const Result r = run(
        [&i] {
            const int at = i++ % 201;
            const double gap = at == 0 ? 9.9e6 : 500;
            return Step{gap, at == 200 ? 2 : 1, 10'000, trace::AllocKind::malloc};
        },
        20);
    CAPTURE(r.figures.malloc.windows);
    CAPTURE(r.figures.malloc.copied_windows);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.figures.malloc.coverage > 0.015);
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.4));
    CHECK(r.ratio(2) == doctest::Approx(1).epsilon(0.5));
}

namespace {

/// Five million small mallocs a second, a large one every `apart` of them.
std::function<Step()> some_large(int apart) {
    return [apart, i = 0]() mutable {
        if (++i % apart == 0) return Step{200, 2, 300'000, trace::AllocKind::large};
        return Step{200, 1, 700, trace::AllocKind::malloc};
    };
}

}  // namespace

TEST_CASE("large blocks among many small ones are all seen, within the budget") {
    probe::SchedulePolicy policy;
    policy.has_large = true;
    const Result few = run(some_large(50'000), 10, policy);
    CHECK(few.figures.overhead < 0.07);
    CHECK(few.figures.malloc.coverage < 0.1);
    CHECK(few.figures.coverage_large > 0.98);
    CHECK(few.ratio(2) == doctest::Approx(1).epsilon(0.03));
    CHECK(few.ratio(1) == doctest::Approx(1).epsilon(0.15));
    // 5,000 a second: more than fit without a break.
    const Result many = run(some_large(1000), 10, policy);
    CHECK(many.figures.overhead < 0.07);
    CHECK(many.figures.coverage_large < 0.5);
    CHECK(many.ratio(2) == doctest::Approx(1).epsilon(0.1));
    CHECK(many.ratio(1) == doctest::Approx(1).epsilon(0.2));
}

TEST_CASE("while malloc is watched without a break large blocks are malloc's") {
    probe::SchedulePolicy policy;
    policy.has_large = true;
    // Quiet, a storm, quiet again: malloc goes to windows and comes back.
    double t = 0;
    const Result r = run(
        [&t, i = 0]() mutable {
            const bool storm = t > 2e9 && t < 4e9;
            const double gap = storm ? 500 : 2e6;
            t += gap;
            if (++i % (storm ? 2000 : 5) == 0) return Step{gap, 2, 300'000, trace::AllocKind::large};
            return Step{gap, 1, 700, trace::AllocKind::malloc};
        },
        8, policy);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.figures.coverage_large > 0.9);
    CHECK(r.ratio(2) == doctest::Approx(1).epsilon(0.1));
}

TEST_CASE("a flood of small objects doesn't hide what goes to malloc") {
    // A million small objects a second, and 4,000 mallocs: too many for the budget without a break. With
    // windows made for the objects, one in a thousand of the mallocs was seen.
    int i = 0;
    const Result r = run(
        [&i] {
            if (++i % 250 == 0) return Step{1000, 2, 4000, trace::AllocKind::malloc};
            return Step{1000, 1, 64};
        },
        10);
    CAPTURE(r.figures.malloc.windows);
    CHECK(r.figures.overhead < 0.07);
    CHECK(r.figures.malloc.coverage > 0.1);
    CHECK(r.ratio(2) == doctest::Approx(1).epsilon(0.1));
    CHECK(r.ratio(1) == doctest::Approx(1).epsilon(0.3));
}
