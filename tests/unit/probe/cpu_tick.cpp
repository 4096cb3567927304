#include "memattach/probe/cpu_tick.h"

#include <doctest/doctest.h>

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
    ticks.serve(0);
    double sum = 0;
    for (std::uint64_t n = 1; n <= 10000; ++n) {
        const std::uint64_t due = ticks.due_ns();
        REQUIRE(due >= n * 1000);
        REQUIRE(due < (n + 1) * 1000);
        sum += static_cast<double>(due - n * 1000);
        REQUIRE(ticks.serve(due) == 0);
    }
    CHECK(sum / 10000 == doctest::Approx(500).epsilon(0.03));
}
