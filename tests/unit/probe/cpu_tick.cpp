#include "memattach/probe/cpu_tick.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

using memattach::probe::TickSchedule;

TEST_CASE("ticks keep to absolute times, however late they are served") {
    TickSchedule ticks(1000, 1e9 / 300);  // every 300 ns
    CHECK(ticks.due_ns() == 1000);
    CHECK(ticks.serve(1000) == 0);
    CHECK(ticks.due_ns() == 1300);
    CHECK(ticks.serve(1299) == 0);
    CHECK(ticks.due_ns() == 1300);
    CHECK(ticks.serve(1450) == 0);  // late, but not by a whole tick
    CHECK(ticks.due_ns() == 1600);
}

TEST_CASE("ticks that nobody served are counted") {
    TickSchedule ticks(0, 1e9 / 100);
    CHECK(ticks.serve(0) == 0);
    CHECK(ticks.serve(550) == 4);  // 100, 200, 300, 400 went by; 500 is served
    CHECK(ticks.due_ns() == 600);
}

TEST_CASE("served + skipped adds up to the time gone by, at a rate that doesn't divide a second") {
    TickSchedule ticks(5, 33333.3);
    std::uint64_t served = 0, skipped = 0, now = 5;
    for (std::uint64_t step = 1; now < 1'000'000'000; step = step * 7 % 90'001) {
        now += step;
        if (now < ticks.due_ns()) continue;
        skipped += ticks.serve(now);
        ++served;
        REQUIRE(ticks.due_ns() > now);
    }
    CHECK(static_cast<double>(served + skipped) == doctest::Approx(33333.3).epsilon(0.001));
}

TEST_CASE("with jitter each tick falls into its own period, anywhere in it") {
    TickSchedule ticks(0, 1e9 / 1000, true);
    double sum = 0;
    for (std::uint64_t n = 0; n < 10000; ++n) {
        const std::uint64_t due = ticks.due_ns();
        REQUIRE(due >= n * 1000);
        REQUIRE(due < (n + 1) * 1000);
        sum += static_cast<double>(due - n * 1000);
        REQUIRE(ticks.serve(due) == 0);
    }
    CHECK(sum / 10000 == doctest::Approx(500).epsilon(0.03));
}

TEST_CASE("with jitter a tick that is served a little late doesn't cost the next one") {
    // Served 50 ns late, one in twenty is served in the period after its own: that isn't the next one's turn.
    TickSchedule ticks(0, 1e9 / 1000, true);
    std::uint64_t served = 0, skipped = 0;
    for (; ticks.due_ns() < 10'000'000; ++served) skipped += ticks.serve(ticks.due_ns() + 50);
    CHECK(served + skipped == 10'000);
    // Only those that were due within 50 ns of the one before: 0.05 * 0.05 / 2 of them.
    CHECK(skipped < 40);
}

TEST_CASE("schedules with jitter that begin at different times are due together") {
    TickSchedule one(0, 1e9 / 1000, true, 5'300);
    TickSchedule other(0, 1e9 / 1000, true, 77'700);
    CHECK(one.due_ns() >= 5'300);
    CHECK(one.due_ns() < 7'000);
    while (one.due_ns() < other.due_ns()) one.serve(one.due_ns());
    CHECK(one.due_ns() == other.due_ns());
}

namespace {

/// Samples taken at 100 Hz of a thread that wants to run for `busy_ms` of each `cycle_ms` and gets a CPU for
/// `share` of that, over the CPU time that it burns in the 20 seconds.
double samples_per_due(double busy_ms, double cycle_ms, double share) {
    constexpr double kPeriodMs = 10;
    constexpr double kSessionMs = 20'000;
    memattach::probe::SmallRandom random(7);
    double samples = 0;
    double due = 0;
    for (int run = 0; run < 50; ++run) {
        memattach::probe::SampleAllowance allowance;
        const double begin = cycle_ms * random.uniform();
        const auto burned_ms = [&](double now) {
            const double whole = std::floor((now + begin) / cycle_ms);
            return share * (whole * busy_ms + std::min(busy_ms, now + begin - whole * cycle_ms));
        };
        for (double tick = 0; tick + kPeriodMs < kSessionMs; tick += kPeriodMs) {
            const double now = tick + kPeriodMs * random.uniform();
            if (std::fmod(now + begin, cycle_ms) >= busy_ms) continue;  // it sleeps
            samples += allowance.take(static_cast<std::uint64_t>(1e6 * burned_ms(now)), 10'000'000) ? 1 : 0;
        }
        due += (burned_ms(kSessionMs) - burned_ms(0)) / kPeriodMs;
    }
    return samples / due;
}

}  // namespace

TEST_CASE("a thread has as many samples as it burns periods, in moments or all of the time") {
    CHECK(samples_per_due(1, 100, 1) == doctest::Approx(1).epsilon(0.1));
    CHECK(samples_per_due(1, 20, 1) == doctest::Approx(1).epsilon(0.1));
    CHECK(samples_per_due(3, 10.3, 1) == doctest::Approx(1).epsilon(0.1));
    CHECK(samples_per_due(50, 100, 1) == doctest::Approx(1).epsilon(0.05));
    CHECK(samples_per_due(100, 100, 1) == doctest::Approx(1).epsilon(0.01));
}

TEST_CASE("a thread that waits for a CPU half of the time has half of the samples") {
    CHECK(samples_per_due(100, 100, 0.5) == doctest::Approx(1).epsilon(0.02));
    CHECK(samples_per_due(50, 100, 0.5) == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("moments that fell between ticks aren't caught up in a row") {
    memattach::probe::SampleAllowance allowance;
    CHECK(allowance.take(0, 10'000'000));
    int taken = 0;
    for (int i = 0; i < 100; ++i) taken += allowance.take(10'000'000'000, 10'000'000) ? 1 : 0;
    CHECK(taken <= 20);
}
