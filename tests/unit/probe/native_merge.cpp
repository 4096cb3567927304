#include "memattach/probe/native_merge.h"

#include <doctest/doctest.h>

using namespace memattach;
using probe::NativeFrame;

namespace {

trace::Frame f(unsigned id) {
    return {static_cast<trace::FunctionId>(id), 0};
}
NativeFrame loop() {
    return {f(900), true, true};
}
NativeFrame inner(unsigned id) {
    return {f(id), false, true};
}  // the interpreter's own
NativeFrame outer(unsigned id) {
    return {f(id), false, false};
}  // an extension's or libc's

}  // namespace

TEST_CASE("an eval-loop frame stands for its run of Python frames") {
    // memcpy <- list_sort <- loop{py 1, py 2} <- call <- ext <- call <- loop{py 3} <- main
    const std::vector<NativeFrame> native = {outer(100), inner(101), loop(), inner(102),
                                             outer(103), inner(104), loop(), outer(105)};
    const trace::Stack python = {f(1), f(2), f(3)};
    const auto merged = probe::merge_stacks(native, python, {false, true, true});
    CHECK(merged == trace::Stack{f(100), f(101), f(1), f(2), f(103), f(3)});
}

TEST_CASE("neighbours without a name are told as one") {
    NativeFrame stripped = outer(7);
    stripped.unnamed = true;
    const std::vector<NativeFrame> native = {outer(1), stripped, stripped, outer(2), outer(2), stripped};
    CHECK(probe::merge_stacks(native, {}, {}) == trace::Stack{f(1), f(7), f(2), f(2), f(7)});
}

TEST_CASE("a thread without Python keeps its native stack") {
    const std::vector<NativeFrame> native = {outer(1), inner(2), outer(3)};
    CHECK(probe::merge_stacks(native, {}, {}) == trace::Stack{f(1), f(2), f(3)});
}

TEST_CASE("stacks of two moments are matched at their outer ends") {
    const trace::Stack python = {f(1), f(2), f(3)};
    SUBCASE("Python has gone one run deeper since") {
        const std::vector<NativeFrame> native = {outer(100), loop(), outer(103), loop()};
        CHECK(probe::merge_stacks(native, python, {true, true, true}) ==
              trace::Stack{f(100), f(1), f(2), f(103), f(3)});
    }
    SUBCASE("Python has returned from a run since") {
        const std::vector<NativeFrame> native = {outer(100), loop(), outer(101), loop(), outer(103), loop()};
        CHECK(probe::merge_stacks(native, python, {false, true, true}) ==
              trace::Stack{f(100), f(101), f(1), f(2), f(103), f(3)});
    }
    SUBCASE("the native stack could not be unwound to any loop") {
        const std::vector<NativeFrame> native = {outer(100)};
        CHECK(probe::merge_stacks(native, python, {true, true, true}) ==
              trace::Stack{f(100), f(1), f(2), f(3)});
    }
}

TEST_CASE("markers behind the last run stay at the end") {
    const trace::Stack python = {f(1), f(2), f(77)};
    CHECK(probe::merge_stacks(std::vector<NativeFrame>{loop()}, python, {false, true}) == python);
}
