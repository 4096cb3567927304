#include "../../../src/probe/shadow_timing.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

using memattach::probe::ColdStart;

namespace {

/// Marks of a way that allocates at random, every 200 ns on average and in `burst`s; its first 10 µs take
/// `cold_ns` longer, and those from 40 to 80 `tepid_ns`.
std::vector<double> way(std::mt19937_64& random, double cold_ns, double tepid_ns, int burst) {
    constexpr double kGapNs = 200, kEndNs = 180'000;
    const auto lost = [&](double ns) {
        return std::min(1.0, ns / 10'000) * cold_ns + std::clamp((ns - 40'000) / 40'000, 0.0, 1.0) * tepid_ns;
    };
    std::exponential_distribution<double> gap(1 / (burst * kGapNs));
    std::vector<double> marks;
    for (double ns = gap(random); ns + lost(ns) < kEndNs; ns += gap(random)) {
        for (int i = 0; i < burst; ++i) marks.push_back(ns + lost(ns) + i);
    }
    return marks;
}

}  // namespace

TEST_CASE("what a cold start costs is told by what is missing in the first microseconds") {
    std::mt19937_64 random(1);
    for (const int burst : {1, 20}) {
        for (const double cold_ns : {0.0, 4'000.0, 8'000.0}) {
            const double tepid_ns = cold_ns / 2;
            ColdStart start;
            for (int i = 0; i < 4000; ++i) start.add(way(random, cold_ns, tepid_ns, burst), 1);
            CHECK(start.lost_ns(20'000) == doctest::Approx(cold_ns).scale(20'000).epsilon(0.1));
            CHECK(start.lost_ns(150'000) == doctest::Approx(cold_ns + tepid_ns).scale(80'000).epsilon(0.1));
            // The same told by every eighth allocation.
            ColdStart seldom;
            for (int i = 0; i < 4000; ++i) {
                const std::vector<double> all = way(random, cold_ns, tepid_ns, burst);
                std::vector<double> marks;
                for (std::size_t k = 7; k < all.size(); k += 8) marks.push_back(all[k]);
                seldom.add(marks, 8);
            }
            CHECK(seldom.lost_ns(150'000) == doctest::Approx(cold_ns + tepid_ns).scale(80'000).epsilon(0.1));
        }
    }
}

TEST_CASE("a cold start is a small one until much is known, and never a large one") {
    ColdStart start;
    CHECK(start.lost_ns(0) == 0);
    CHECK(start.lost_ns(10'000) > 0);
    CHECK(start.lost_ns(200'000) < 8'000);
    const double unknown_ns = start.lost_ns(200'000);
    start.add(std::vector<double>{30'000}, 1);  // too short to tell anything
    start.add({}, 1);
    CHECK(start.lost_ns(200'000) == unknown_ns);
    // A program that never allocates in the first 20 µs.
    for (int i = 0; i < 1000; ++i) start.add(std::vector<double>{25'000, 30'000, 90'000, 150'000}, 1);
    CHECK(start.lost_ns(200'000) <= 28'000);
}
