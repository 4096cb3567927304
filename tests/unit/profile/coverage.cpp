/// Do the intervals keep their promise? Programs with a known truth are sampled as the engine samples them
/// (byte- weighted, all the time or in windows at random places of spans), a few hundred times with different
/// seeds; the share of runs in which a line's truth lies within its interval must be near 95 %.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "memattach/profile/builder.h"
#include "memattach/profile/estimate.h"
#include "profile/scenario.h"

using namespace memattach;
using memattach::test::Scenario;

namespace {

constexpr double kSecond = 1e9;

/// A line that allocates `burst` blocks of `size` bytes each `every_ns`, `gap_ns` apart.
struct Line {
    const char* name;
    double size;
    double every_ns;
    std::uint64_t burst = 1;
    double gap_ns = 0;
    trace::AllocKind kind = trace::AllocKind::malloc;
    double begins_ns = 0;

    [[nodiscard]] std::uint64_t count(double duration_ns) const {
        return burst * static_cast<std::uint64_t>((duration_ns - begins_ns) / every_ns);
    }
    [[nodiscard]] double time_of(std::uint64_t index) const {
        return begins_ns + every_ns * static_cast<double>(index / burst) +
               gap_ns * static_cast<double>(index % burst);
    }
};

const std::vector<Line> kProgram = {
    {"steady", 1000, 50e3},
    {"burst", 4000, 487.3e6, 2000, 2000, trace::AllocKind::malloc, 13e6},
    {"rare large", 20e6, 1.937e9, 1, 0, trace::AllocKind::malloc, 0.713e9},
    {"mixed", 60e3, 4.87e6, 3, 0.2e6},
    {"objects", 64, 4e3, 1, 0, trace::AllocKind::object},
    {"late", 8000, 1e6, 1, 0, trace::AllocKind::malloc, 7e9},
};
constexpr double kDuration = 10 * kSecond;

struct Sampling {
    double threshold = 1e6;  ///< R
    double span_ns = 0;      ///< 0: armed all the time
    double window_ns = 0;
};

struct Window {
    double start, end;
};

/// Runs the program once. Own time is the clock.
profile::Profile run(Scenario& s, const Sampling& sampling, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform;
    std::vector<Window> windows;
    // Spans begin at a random moment before the program does, so that nothing in it is in step with them.
    const double origin = -uniform(random) * sampling.span_ns;
    if (sampling.span_ns > 0) {
        for (double at = origin; at < kDuration; at += sampling.span_ns) {
            const double start = at + uniform(random) * (sampling.span_ns - sampling.window_ns);
            windows.push_back({start, start + sampling.window_ns});
        }
    }
    struct Event {
        double time;
        std::size_t line;
        std::uint64_t window;
    };
    std::vector<Event> events;
    for (std::size_t l = 0; l < kProgram.size(); ++l) {
        const Line& line = kProgram[l];
        const double kept = -std::expm1(-line.size / sampling.threshold);
        const std::uint64_t count = line.count(kDuration);
        // From one kept block to the next: a geometric number of steps.
        const auto skip = [&] {
            return static_cast<std::uint64_t>(std::min(1e12, std::log(uniform(random)) / std::log1p(-kept)));
        };
        for (std::uint64_t i = skip(); i < count; i += 1 + skip()) {
            const double time = line.time_of(i);
            if (windows.empty()) {
                events.push_back({time, l, 0});
                continue;
            }
            const auto index = static_cast<std::size_t>((time - origin) / sampling.span_ns);
            if (index >= windows.size()) continue;
            if (time < windows[index].start || time >= windows[index].end) continue;
            events.push_back({time, l, index + 1});
        }
    }
    std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.time < b.time; });

    profile::BuildOptions options;
    options.cpu = false;
    options.memory = true;
    options.start_ns = 1;
    profile::Builder builder(s.table, options);
    std::vector<profile::StackId> stacks;
    for (std::size_t l = 0; l < kProgram.size(); ++l) {
        stacks.push_back(
            builder.intern({s.frame(kProgram[l].name, "/app/p.py", static_cast<std::uint32_t>(l + 1)),
                            s.frame("main", "/app/p.py", 99)}));
    }
    std::size_t next = 0;
    const auto emit_until = [&](double end) {
        for (; next < events.size() && events[next].time < end; ++next) {
            const Event& event = events[next];
            const Line& line = kProgram[event.line];
            trace::Alloc alloc;
            alloc.time_ns = 1 + static_cast<std::uint64_t>(event.time);
            alloc.address = 0x10000 + 16 * next;
            alloc.size_bytes = static_cast<std::uint64_t>(line.size);
            alloc.sampling_bytes = sampling.threshold;
            alloc.kind = line.kind;
            alloc.window = event.window;
            if (event.window != 0) alloc.armed_fraction = sampling.window_ns / sampling.span_ns;
            builder.add(alloc, stacks[event.line]);
            trace::Free free;
            free.time_ns = alloc.time_ns;
            free.address = alloc.address;
            builder.add(free);
        }
    };
    for (std::size_t w = 0; w < windows.size(); ++w) {
        emit_until(windows[w].end);
        for (const auto kind : {trace::AllocKind::malloc, trace::AllocKind::object}) {
            trace::Window window;
            window.id = w + 1;
            window.kind = kind;
            window.start_ns = 1 + static_cast<std::uint64_t>(std::max(0.0, windows[w].start));
            window.end_ns = 1 + static_cast<std::uint64_t>(std::max(0.0, windows[w].end));
            window.own_ns = static_cast<std::uint64_t>(sampling.window_ns);
            window.span_own_ns = static_cast<std::uint64_t>(sampling.span_ns);
            builder.add(window);
        }
    }
    emit_until(kDuration + 1);
    profile::Session session;
    session.duration_s = kDuration / kSecond;
    profile::Profile p = builder.finish({}, session, {});
    profile::check(p);
    return p;
}

struct Tally {
    int runs = 0, covered = 0;
    double sum = 0, squares = 0, truth = 0;
    void add(double estimate, double half_width, double true_value) {
        ++runs;
        sum += estimate;
        squares += estimate * estimate;
        truth += true_value;
        covered += std::abs(estimate - true_value) <= half_width * (1 + 1e-9) + 1e-6 * true_value ? 1 : 0;
    }
    [[nodiscard]] double coverage() const { return static_cast<double>(covered) / std::max(1, runs); }
};

/// Coverage by line, of the runs in which it was seen at all, and of the total of those lines: what no window
/// hit (a large block every two seconds, say) can be in no interval.
std::map<std::string, Tally> cover(const Sampling& sampling, int runs) {
    std::map<std::string, Tally> tallies;
    for (int i = 0; i < runs; ++i) {
        Scenario s;
        const profile::Profile p = run(s, sampling, 1000 + static_cast<std::uint64_t>(i));
        double all = 0;
        for (std::size_t l = 0; l < kProgram.size(); ++l) {
            const double truth = kProgram[l].size * static_cast<double>(kProgram[l].count(kDuration));
            const auto* row = Scenario::line(p, "/app/p.py", static_cast<std::uint32_t>(l + 1));
            if (!row || *row->figures.alloc_bytes == 0) continue;
            all += truth;
            const profile::Figures& f = row->figures;
            tallies[kProgram[l].name].add(*f.alloc_bytes, *f.alloc_ci95, truth);
            // Blocks of one line are of one size, and all are freed at once.
            tallies[std::string(kProgram[l].name) + ", count"].add(*f.alloc_count, *f.alloc_count_ci95,
                                                                   truth / kProgram[l].size);
            tallies[std::string(kProgram[l].name) + ", freed"].add(*f.freed_bytes, *f.freed_ci95, truth);
        }
        tallies["total"].add(*p.totals.alloc_bytes, *p.totals.alloc_ci95, all);
    }
    for (const auto& [name, tally] : tallies) {
        INFO(name << ": covered in " << tally.covered << " of " << tally.runs << " runs");
        // And on average the estimate is right: within four standard errors of the mean.
        const double truth = tally.truth / tally.runs;
        const double error = std::sqrt(tally.squares / tally.runs - std::pow(tally.sum / tally.runs, 2)) /
                             std::sqrt(static_cast<double>(tally.runs));
        const bool seen_always = tally.runs == runs && name != "total";
        if (seen_always) CHECK(std::abs(tally.sum / tally.runs - truth) <= 4 * error + 1e-3 * truth);
    }
    return tallies;
}

}  // namespace

TEST_CASE("armed all the time: 95 % intervals hold the truth in 95 % of runs") {
    Sampling sampling;
    sampling.threshold = 1e6;
    for (const auto& [name, tally] : cover(sampling, 200)) {
        CAPTURE(name);
        CHECK(tally.coverage() >= 0.91);
    }
}

TEST_CASE("armed all the time: live, freed and peak bytes lie in their intervals") {
    // Two lines fill up and are cut down in turns: the peak is in the middle, and is not the end.
    constexpr int kRuns = 200;
    constexpr double kSize = 20e3, kThreshold = 100e3;
    std::map<std::string, Tally> tallies;
    for (int run = 0; run < kRuns; ++run) {
        std::mt19937_64 random(static_cast<std::uint64_t>(run));
        std::uniform_real_distribution<double> uniform;
        Scenario s;
        profile::BuildOptions options;
        options.cpu = false;
        options.memory = true;
        options.start_ns = 1;
        profile::Builder builder(s.table, options);
        const profile::StackId stack = builder.intern({s.frame("f", "/app/p.py", 1)});
        const double kept = -std::expm1(-kSize / kThreshold);
        std::vector<trace::Alloc> live;
        std::uint64_t now = 1;
        const auto allocate = [&](int count) {
            for (int i = 0; i < count; ++i) {
                now += 100'000;
                if (uniform(random) >= kept) continue;
                trace::Alloc alloc;
                alloc.time_ns = now;
                alloc.address = 0x10000 + 16 * now;
                alloc.size_bytes = static_cast<std::uint64_t>(kSize);
                alloc.sampling_bytes = kThreshold;
                builder.add(alloc, stack);
                live.push_back(alloc);
            }
        };
        // Blocks that are sampled are freed like all others: each with the same chance.
        allocate(6000);
        const double at_peak = 6000 * kSize;
        std::size_t left = 0;
        for (const trace::Alloc& alloc : live) {
            now += 1000;
            if (alloc.time_ns % 200'000 == 1) {
                live[left++] = alloc;
                continue;
            }
            trace::Free free;
            free.time_ns = now;
            free.address = alloc.address;
            builder.add(free);
        }
        live.resize(left);
        allocate(1000);
        profile::Session session;
        session.duration_s = static_cast<double>(now) / kSecond;
        const profile::Profile p = builder.finish({}, session, {});
        profile::check(p);
        const profile::Figures& f = Scenario::line(p, "/app/p.py", 1)->figures;
        tallies["live"].add(*f.live_bytes, *f.live_ci95, 4000 * kSize);
        tallies["freed"].add(*f.freed_bytes, *f.freed_ci95, 3000 * kSize);
        tallies["peak"].add(*f.peak_bytes, *f.peak_ci95, at_peak);
        tallies["total's peak"].add(*p.totals.peak_bytes, *p.totals.peak_ci95, at_peak);
    }
    for (const auto& [name, tally] : tallies) {
        CAPTURE(name);
        CHECK(tally.coverage() >= 0.91);
        CHECK(tally.coverage() <= 0.995);  // an interval that always holds the truth says less than it could
    }
}

TEST_CASE("armed in windows: intervals hold the truth, clusters and bursts included") {
    Sampling sampling;
    sampling.threshold = 50e3;
    sampling.span_ns = 50e6;
    sampling.window_ns = 5e6;
    for (const auto& [name, tally] : cover(sampling, 80)) {
        CAPTURE(name);
        CHECK(tally.coverage() >= 0.88);
    }
}

TEST_CASE("armed half of the time: the share that was looked at narrows the interval") {
    Sampling sampling;
    sampling.threshold = 50e3;
    sampling.span_ns = 50e6;
    sampling.window_ns = 40e6;
    for (const auto& [name, tally] : cover(sampling, 40)) {
        CAPTURE(name);
        CHECK(tally.coverage() >= 0.88);
    }
}

TEST_CASE("that a sum is positive is sure where every group of windows says so, whatever it weighs") {
    profile::SampleSum agreeing;
    profile::SampleSum mixed;
    for (std::uint64_t window = 1; window <= 10; ++window) {
        const double value = window == 4 ? 500 : 10;  // one stands for nearly all of it
        agreeing.add(value, 0.5, trace::AllocKind::malloc, window);
        mixed.add(window % 2 == 0 ? value : -10, 0.5, trace::AllocKind::malloc, window);
    }
    CHECK(agreeing.chance_of_sign() < 0.01);
    CHECK(mixed.chance_of_sign() > 0.1);
    profile::SampleSum single;
    single.add(500, 0.5, trace::AllocKind::malloc, 7);
    CHECK(single.chance_of_sign() == doctest::Approx(0.5).epsilon(0.2));
    CHECK(profile::SampleSum().chance_of_sign() > 0.3);
}

TEST_CASE("a line that no window met may have allocated all the same") {
    Scenario s;
    profile::BuildOptions options;
    options.cpu = options.memory = true;
    options.start_ns = 1;
    profile::Builder builder(s.table, options);
    const auto seen = builder.intern({s.frame("seen", "/app/p.py", 1)});
    const auto unseen = builder.intern({s.frame("unseen", "/app/p.py", 2)});
    builder.add(Scenario::sample(trace::CpuMode::python), unseen);
    constexpr std::uint64_t kWindows = 100, kSpanNs = 10'000'000, kWindowNs = 100'000;
    for (std::uint64_t i = 0; i < kWindows; ++i) {
        trace::Alloc alloc;
        alloc.pid = 7;
        alloc.kind = trace::AllocKind::object;
        alloc.address = 0x1000 + 64 * i;
        alloc.size_bytes = 1000;
        alloc.sampling_bytes = 10;  // every one is kept
        alloc.time_ns = 1 + i * kSpanNs;
        alloc.window = i + 1;
        alloc.armed_fraction = static_cast<double>(kWindowNs) / kSpanNs;
        builder.add(alloc, seen);
        trace::Window window;
        window.id = i + 1;
        window.kind = trace::AllocKind::object;
        window.start_ns = alloc.time_ns;
        window.end_ns = alloc.time_ns + kWindowNs;
        window.own_ns = kWindowNs;
        window.span_own_ns = kSpanNs;
        builder.add(window);
    }
    const profile::Profile p = Scenario::finish(builder, 1);
    const double all = p.totals.alloc_bytes.value();
    REQUIRE(all == doctest::Approx(1000 * 100 * 100));
    const profile::LineRow* row = Scenario::line(p, "/app/p.py", 2);
    REQUIRE(row != nullptr);
    CHECK(row->figures.alloc_bytes == 0);
    CHECK(row->figures.alloc_ci95.value() == doctest::Approx(0.03 * all));
    CHECK(row->figures.memory_ci95.value() == doctest::Approx(3));
}
