#include "memattach/probe/progress.h"

#include <doctest/doctest.h>

#include "process/fake_memory.h"

using namespace memattach;
using probe::own_time_between;
using probe::ProgressSnapshot;

namespace {

ProgressSnapshot at(std::uint64_t cpu_ns, std::vector<probe::ProgressWord> words) {
    return {cpu_ns, std::move(words)};
}

}  // namespace

TEST_CASE("a loop's index tells how much own time a window was, whatever the CPU clock says") {
    // An iteration takes 500 ns; 100 of them lie in a window in which the clock went on by 800 µs.
    const auto own =
        own_time_between(at(1'000'000, {{7, 100}}), at(1'500'000, {{7, 1100}}), at(2'000'000, {{7, 2100}}),
                         at(2'000'000, {{7, 2100}}), at(2'800'000, {{7, 2200}}), 800'000);
    REQUIRE(own);
    CHECK(own->own_ns == doctest::Approx(50'000));
    CHECK(own->relative_sd < 0.02);
}

TEST_CASE("words that count down, in steps, and beside others that don't count") {
    const auto own =
        own_time_between(at(0, {{1, 5}, {7, 80'000}, {9, 44}}), at(500'000, {{1, 6}, {7, 72'000}}),
                         at(1'000'000, {{1, 5}, {7, 64'000}}), at(1'000'000, {{1, 5}, {7, 64'000}}),
                         at(1'300'000, {{1, 9}, {7, 63'200}}), 300'000);
    REQUIRE(own);
    CHECK(own->own_ns == doctest::Approx(50'000));
}

TEST_CASE("what moves with the wall clock, unevenly, backwards or too little says nothing") {
    const auto told = [](std::uint64_t b, std::uint64_t c, std::uint64_t e) {
        return own_time_between(at(0, {{7, 0}}), at(500'000, {{7, b}}), at(1'000'000, {{7, c}}),
                                at(1'000'000, {{7, c}}), at(1'300'000, {{7, e}}), 300'000)
            .has_value();
    };
    CHECK(told(1000, 2000, 2100));
    CHECK_FALSE(told(1000, 2000, 9000));  // more own time than the CPU clock saw
    CHECK_FALSE(told(1000, 5000, 5100));
    CHECK_FALSE(told(1000, 2000, 1900));
    CHECK_FALSE(told(1000, 2000, 2000));
    CHECK_FALSE(told(1000, 2000, 2003));  // three steps of one: too coarse
    CHECK_FALSE(own_time_between(at(0, {}), at(1, {}), at(2, {}), at(2, {}), at(3, {}), 1).has_value());
}

TEST_CASE("words are read through the slots of the thread's frames; slots may hold anything") {
    test::FakeMemory memory;
    python::Layout layout;
    layout.thread.frame = 24;
    layout.frame.localsplus = 80;
    layout.frame.previous = 8;
    const base::Address state(0x10000), frame(0x20000), iterator(0x30000);
    memory.map_zeros(state, 64);
    memory.map_zeros(frame, 80 + 24 * 8);
    memory.map_zeros(iterator, 64);
    memory.write(state + 24, frame.value());
    memory.write(frame + 8, frame.value());  // a cycle: bounded
    memory.write(frame + 80, std::uint64_t{0xdead00});
    memory.write(frame + 88, iterator.value() | 1);  // a tagged reference
    memory.write(frame + 96, ~std::uint64_t{0});
    memory.write(iterator + 24, std::uint64_t{41});
    ProgressSnapshot before, after;
    probe::read_progress(memory, layout, state, before);
    memory.write(iterator + 24, std::uint64_t{42});
    probe::read_progress(memory, layout, state, after);
    REQUIRE(before.words.size() == after.words.size());
    std::size_t moved = 0;
    for (std::size_t i = 0; i < before.words.size(); ++i) {
        CHECK(before.words[i].place == after.words[i].place);
        moved += before.words[i].value != after.words[i].value ? 1 : 0;
    }
    CHECK(moved >= 1);
    probe::read_progress(memory, layout, base::Address(0x999000), after);
    CHECK(after.words.empty());
}
