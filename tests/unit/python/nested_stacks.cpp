#include <doctest/doctest.h>

#include "memattach/python/reader.h"

using namespace memattach;
using python::RawFrame;
using python::RawStack;

namespace {

RawStack stack_of(std::size_t frames, std::uint64_t code) {
    RawStack stack;
    for (std::size_t i = 0; i < frames; ++i) stack.frames.push_back(RawFrame{base::Address(code), 0, false});
    stack.unchanged = true;
    stack.unchanged_frames = static_cast<std::uint32_t>(frames);
    return stack;
}

}  // namespace

TEST_CASE("what called a subinterpreter's code lies outside of it") {
    RawStack stack = stack_of(2, 0x1000);
    python::append_outer(stack, stack_of(3, 0x2000));
    REQUIRE(stack.frames.size() == 5);
    CHECK(stack.frames[1].code == base::Address(0x1000));
    CHECK(stack.frames[2].code == base::Address(0x2000));
    CHECK_FALSE(stack.unchanged);
    CHECK(stack.unchanged_frames == 0);

    RawStack outer = stack_of(trace::kMaxStackDepth, 0x2000);
    python::append_outer(stack, outer);
    CHECK(stack.frames.size() == trace::kMaxStackDepth);
    CHECK(stack.truncated);

    // What lies outside of a hole isn't known to be next to it.
    for (const bool broken : {false, true}) {
        RawStack inner = stack_of(2, 0x1000);
        (broken ? inner.broken : inner.truncated) = true;
        python::append_outer(inner, stack_of(3, 0x2000));
        CHECK(inner.frames.size() == 2);
    }
    outer = stack_of(1, 0x2000);
    outer.broken = true;
    RawStack inner = stack_of(1, 0x1000);
    python::append_outer(inner, outer);
    CHECK(inner.broken);
}
