#include "memattach/profile/leaks.h"

#include <doctest/doctest.h>

#include <cmath>
#include <deque>
#include <random>

#include "memattach/profile/builder.h"
#include "profile/scenario.h"

using namespace memattach;
using memattach::test::Scenario;

namespace {

constexpr std::uint64_t kStart = 5'000'000'000;

/// A program of which the allocations that are kept are generated one after the other, at R = 1 MB, armed all
/// the time. Lines 1, 2, … of /app/service.py.
class Program {
  public:
    explicit Program(std::uint64_t seed, std::optional<double> limit = std::nullopt) : random_(seed) {
        profile::BuildOptions options;
        options.cpu = false;
        options.memory = true;
        options.start_ns = kStart;
        options.memory_limit_bytes = limit;
        builder_ = std::make_unique<profile::Builder>(s_.table, options);
        for (std::uint32_t line = 1; line <= 5; ++line) {
            stacks_.push_back(builder_->intern({s_.frame("handler", "/app/service.py", line)}));
        }
    }

    /// Line `line` allocates blocks of `size` at `bytes_per_s` for `seconds` from now on; `lives` says when
    /// one that was born at a given time ends (s; infinity: never).
    template <typename Lives>
    void allocate(std::uint32_t line, double size, double bytes_per_s, double from_s, double to_s,
                  Lives lives) {
        const double kept = -std::expm1(-size / kThreshold);
        std::exponential_distribution<double> gap(bytes_per_s / size * kept);
        for (double at = from_s + gap(random_); at < to_s; at += gap(random_)) {
            const std::uint64_t address = next_address_ += 64;
            events_.insert({at, {line, size, address}});
            const double end = lives(at);
            if (std::isfinite(end)) events_.insert({end, {0, 0, address}});
        }
    }

    profile::Profile run(double duration_s, const profile::Totals& totals = {}) {
        for (const auto& [at, event] : events_) {
            if (at >= duration_s) break;
            const auto time = kStart + static_cast<std::uint64_t>(at * 1e9);
            if (event.line == 0) {
                trace::Free f;
                f.time_ns = time;
                f.address = event.address;
                builder_->add(f);
                continue;
            }
            trace::Alloc a;
            a.time_ns = time;
            a.address = event.address;
            a.size_bytes = static_cast<std::uint64_t>(event.size);
            a.sampling_bytes = kThreshold;
            builder_->add(a, stacks_[event.line - 1]);
        }
        profile::Session session;
        session.duration_s = duration_s;
        profile::Profile p = builder_->finish({}, session, totals);
        profile::check(p);
        return p;
    }

    std::mt19937_64& random() { return random_; }

  private:
    static constexpr double kThreshold = 1e6;
    struct Event {
        std::uint32_t line;
        double size;
        std::uint64_t address;
    };
    Scenario s_;
    std::mt19937_64 random_;
    std::unique_ptr<profile::Builder> builder_;
    std::vector<profile::StackId> stacks_;
    std::multimap<double, Event> events_;
    std::uint64_t next_address_ = 0x1000;
};

constexpr double kForEver = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("a leak of 1 MB/s in 200 MB/s of churn is the first suspect after 20 s") {
    int first = 0;
    int false_suspects = 0;
    constexpr int kRuns = 40;
    for (int i = 0; i < kRuns; ++i) {
        Program program(100 + static_cast<std::uint64_t>(i), 1e9);
        std::exponential_distribution<double> brief(1 / 0.05);
        program.allocate(1, 2000, 200e6, 0, 20, [&](double at) { return at + brief(program.random()); });
        program.allocate(2, 500, 1e6, 0, 20, [](double) { return kForEver; });
        profile::Totals totals;
        totals.rss_end_bytes = 400e6;
        const profile::Profile p = program.run(20, totals);
        if (!p.leaks.empty() && p.leaks[0].line == 2) {
            ++first;
            CHECK(p.leaks[0].confidence > 0.8);
            CHECK(p.leaks[0].growth_bytes_per_min == doctest::Approx(60e6).epsilon(0.8));
            REQUIRE(p.leaks[0].seconds_to_limit);
            CHECK(*p.leaks[0].seconds_to_limit ==
                  doctest::Approx(600e6 / (p.leaks[0].growth_bytes_per_min / 60)));
            CHECK(p.leaks[0].evidence.find("still live") != std::string::npos);
        }
        for (const profile::Leak& leak : p.leaks) false_suspects += leak.line != 2 ? 1 : 0;
    }
    CAPTURE(first);
    CHECK(first >= kRuns * 9 / 10);
    CHECK(false_suspects <= 1);
}

TEST_CASE("a cache that has filled up is no leak, one that still fills is a suspect") {
    Program full(1);
    full.allocate(1, 4000, 20e6, 0, 6, [](double) { return kForEver; });
    std::exponential_distribution<double> brief(100);
    full.allocate(2, 4000, 20e6, 0, 20, [&](double at) { return at + brief(full.random()); });
    const profile::Profile p = full.run(20);
    CHECK(p.leaks.empty());
    CHECK(*Scenario::line(p, "/app/service.py", 1)->figures.live_bytes ==
          doctest::Approx(120e6).epsilon(0.2));

    // Filled within the last half: its slope over that half is positive, but it has stopped.
    Program late(2);
    late.allocate(1, 4000, 20e6, 0, 14, [](double) { return kForEver; });
    CHECK(late.run(20).leaks.empty());

    Program filling(3);
    filling.allocate(1, 4000, 10e6, 0, 20, [](double) { return kForEver; });
    CHECK(filling.run(20).leaks.size() == 1);

    // Least recently used goes first: constant from 4 s on.
    Program bounded(4);
    bounded.allocate(1, 4000, 20e6, 0, 20, [](double at) { return at + 4; });
    CHECK(bounded.run(20).leaks.empty());
}

TEST_CASE("what goes up and down is no leak, wherever the session ends") {
    for (const double period : {2.0, 5.0, 8.0}) {
        for (const double end : {19.0, 20.0, 21.5, 23.9}) {
            CAPTURE(period);
            CAPTURE(end);
            Program batches(7);
            batches.allocate(1, 4000, 20e6, 0, end,
                             [&](double at) { return (std::floor(at / period) + 1) * period; });
            CHECK(batches.run(end).leaks.empty());
        }
    }
}

TEST_CASE("steady programs have no suspects") {
    int suspects = 0;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        Program program(500 + seed);
        std::exponential_distribution<double> some(1 / 1.0);
        std::exponential_distribution<double> brief(1 / 0.01);
        program.allocate(1, 2000, 30e6, 0, 20, [&](double at) { return at + some(program.random()); });
        program.allocate(2, 50'000, 30e6, 0, 20, [&](double at) { return at + brief(program.random()); });
        program.allocate(3, 5e6, 30e6, 0, 20, [&](double at) { return at + some(program.random()) / 2; });
        suspects += static_cast<int>(program.run(20).leaks.size());
    }
    CHECK(suspects <= 4);  // of 180 lines
}

TEST_CASE("a session of four seconds has no suspects") {
    Program program(1);
    program.allocate(1, 4000, 50e6, 0, 4, [](double) { return kForEver; });
    CHECK(program.run(4).leaks.empty());
}
