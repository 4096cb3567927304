#include "memattach/python/reader.h"

#include <doctest/doctest.h>

#include "fake_interpreter.h"

using namespace memattach;
using base::Address;
using python::RawStack;
using python::StackReader;
using python::WalkStatus;
using test::FakeInterpreter;
using test::FrameStyle;

namespace {

constexpr FrameStyle kStyles[] = {FrameStyle::heap, FrameStyle::cframe, FrameStyle::shims,
                                  FrameStyle::tagged};

/// main() on line 11 calls work() on line 13, which calls leaf(), now on line 15; innermost in slot 2.
struct ThreeFrames {
    explicit ThreeFrames(FrameStyle style) : fake(style) {
        const bool inner_only = style == FrameStyle::cframe || style == FrameStyle::shims;
        Address outermost;
        if (style == FrameStyle::shims || style == FrameStyle::tagged)
            outermost = fake.put_shim(100, Address());
        const Address main = fake.put_frame(0, codes[0] = fake.add_code("main"), 2, outermost,
                                            {.running = !inner_only, .entry = true});
        const Address work =
            fake.put_frame(1, codes[1] = fake.add_code("work"), 6, main, {.running = !inner_only});
        leaf = fake.put_frame(2, codes[2] = fake.add_code("leaf"), 10, work);
        fake.set_current(leaf);
    }
    FakeInterpreter fake;
    Address codes[3];
    Address leaf;
};

/// The Gil of the fake, or the word that says the same.
void hold_gil(FakeInterpreter& fake, Address thread) {
    if (fake.runtime.layout.runtime.tstate_current != python::kAbsent) {
        fake.memory.fake.write(FakeInterpreter::kRuntime + 16, thread.value());
    } else {
        fake.memory.fake.write(FakeInterpreter::kGil + 8, thread.value());
        fake.memory.fake.write(FakeInterpreter::kGil + 16, std::int32_t(thread.is_null() ? 0 : 1));
    }
}

}  // namespace

TEST_CASE("a stack in each of the styles: functions, lines and entries into the eval loop") {
    for (const FrameStyle style : kStyles) {
        CAPTURE(static_cast<int>(style));
        ThreeFrames target(style);
        StackReader reader(target.fake.memory, target.fake.runtime, 0);
        RawStack raw;
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        REQUIRE(raw.frames.size() == 3);
        for (std::size_t i = 0; i < 3; ++i) CHECK(raw.frames[i].code == target.codes[2 - i]);
        CHECK(raw.frames[0].instr_offset == 10);
        CHECK(raw.frames[1].instr_offset == 6);
        CHECK(raw.frames[2].instr_offset == 2);
        CHECK(raw.frames[0].entry == (style == FrameStyle::heap));
        CHECK(raw.frames[2].entry);
        CHECK_FALSE(raw.unchanged);
        CHECK_FALSE(raw.broken);
        CHECK_FALSE(raw.truncated);

        trace::FunctionTable table;
        python::CodeCache codes(target.fake.memory, target.fake.runtime, table);
        trace::Stack stack;
        trace::LossCounts losses;
        codes.resolve(raw, stack, losses);
        REQUIRE(stack.size() == 3);
        CHECK(table.at(stack[0].function) ==
              trace::Function{"leaf", "/srv/app.py", 10, trace::FunctionKind::python});
        CHECK(stack[0].line == 15);
        CHECK(stack[1].line == 13);
        CHECK(stack[2].line == 11);

        // The second time in one go, and known to be the same.
        const std::size_t before = target.fake.memory.reads;
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        CHECK(raw.unchanged);
        CHECK(raw.unchanged_frames == 3);
        CHECK(target.fake.memory.reads - before <= 7);  // pieces, all of one call

        target.fake.put_frame(2, target.codes[2], 12, FakeInterpreter::frame_at(1));
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        CHECK_FALSE(raw.unchanged);
        CHECK(raw.unchanged_frames == 2);
        CHECK(raw.frames[0].instr_offset == 12);
    }
}

TEST_CASE("a stopped thread is read without a second look") {
    for (const FrameStyle style : kStyles) {
        ThreeFrames target(style);
        StackReader reader(target.fake.memory, target.fake.runtime, 0);
        RawStack raw;
        CHECK(reader.walk(FakeInterpreter::kThread, raw, true) == WalkStatus::consistent);
        CHECK(raw.frames.size() == 3);
    }
}

TEST_CASE("a thread without frames, one that is gone, and memory that another thread got") {
    for (const FrameStyle style : kStyles) {
        ThreeFrames target(style);
        auto& fake = target.fake;
        StackReader reader(fake.memory, fake.runtime, 0);
        RawStack raw;
        CHECK(reader.walk(Address(0x999'0000), raw) == WalkStatus::gone);
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        fake.set_current(Address());
        CHECK(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::no_frames);
        CHECK(raw.frames.empty());
        fake.set_current(target.leaf);
        CHECK(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        fake.memory.fake.write(FakeInterpreter::kThread + 48, std::uint64_t{0x8888});
        CHECK(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::gone);
        CHECK(reader.walk(FakeInterpreter::kThread, raw) ==
              WalkStatus::consistent);  // from now on: the new one
    }
}

TEST_CASE("a thread that runs nothing but a trampoline has no frames") {
    FakeInterpreter fake(FrameStyle::shims);
    fake.set_current(fake.put_shim(0, Address()));
    StackReader reader(fake.memory, fake.runtime, 0);
    RawStack raw;
    CHECK(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::no_frames);
}

TEST_CASE("C calls Python again: the trampoline marks where the eval loop was entered") {
    ThreeFrames target(FrameStyle::shims);
    const Address shim = target.fake.put_shim(3, target.leaf);
    target.fake.set_current(target.fake.put_frame(4, target.codes[0], 4, shim));
    StackReader reader(target.fake.memory, target.fake.runtime, 0);
    RawStack raw;
    REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
    REQUIRE(raw.frames.size() == 4);
    CHECK(raw.frames[0].entry);
    CHECK_FALSE(raw.frames[1].entry);
    CHECK_FALSE(raw.frames[2].entry);
    CHECK(raw.frames[3].entry);
}

TEST_CASE("frames that were never begun, and instructions that can't be") {
    for (const FrameStyle style : kStyles) {
        ThreeFrames target(style);
        StackReader reader(target.fake.memory, target.fake.runtime, 0);
        RawStack raw;
        const bool pointer_before = style == FrameStyle::cframe;
        const std::int32_t not_begun = style == FrameStyle::heap ? -1 : pointer_before ? -2 : 0;
        target.fake.put_frame(2, target.codes[2], not_begun, FakeInterpreter::frame_at(1));
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        CHECK(raw.frames[0].instr_offset == (style >= FrameStyle::shims ? 0 : -1));
        // An instruction far outside of any code, in the caller.
        target.fake.put_frame(1, target.codes[1], -4000, FakeInterpreter::frame_at(0));
        CHECK(reader.walk(FakeInterpreter::kThread, raw) != WalkStatus::gone);
        CHECK(raw.broken);
        CHECK(raw.frames.size() <= 1);
    }
}

TEST_CASE("cycles and chains without end are cut, in bounded time") {
    for (const FrameStyle style : kStyles) {
        for (const std::uint64_t length : {1ULL, 2ULL, 3ULL, 7ULL, 100ULL, 1023ULL}) {
            FakeInterpreter fake(style);
            const Address code = fake.add_code("f");
            for (std::uint64_t i = 0; i < length; ++i) {
                fake.put_frame(i, code, 2, FakeInterpreter::frame_at((i + 1) % length));
            }
            fake.set_current(FakeInterpreter::frame_at(0));
            StackReader reader(fake.memory, fake.runtime, 0);
            RawStack raw;
            (void)reader.walk(FakeInterpreter::kThread, raw);
            CHECK((raw.broken || raw.truncated));
            CHECK(raw.frames.size() <= trace::kMaxStackDepth);
            CHECK(fake.memory.reads < 5000);
        }
        FakeInterpreter fake(style);
        const Address code = fake.add_code("f");
        for (std::uint64_t i = 0; i < 2000; ++i) {
            fake.put_frame(i, code, static_cast<std::int32_t>(i % 16) * 2,
                           i == 0 ? Address() : FakeInterpreter::frame_at(i - 1));
        }
        fake.set_current(FakeInterpreter::frame_at(1999));
        StackReader reader(fake.memory, fake.runtime, 0);
        RawStack raw;
        CHECK(reader.walk(FakeInterpreter::kThread, raw, true) == WalkStatus::consistent);
        CHECK(raw.truncated);
        CHECK(raw.frames.size() == trace::kMaxStackDepth);
        CHECK(raw.frames[0].instr_offset == 1999 % 16 * 2);  // the innermost ones are kept
    }
}

TEST_CASE("a link into nowhere ends the stack there and says so") {
    for (const FrameStyle style : kStyles) {
        for (const std::uint64_t nowhere : {0x6666'0000ULL, 0x1ULL, ~0ULL, ~7ULL, 0x8000'0000'0000'0000ULL}) {
            ThreeFrames target(style);
            target.fake.put_frame(0, target.codes[0], 2, Address(nowhere));
            StackReader reader(target.fake.memory, target.fake.runtime, 0);
            RawStack raw;
            CHECK(reader.walk(FakeInterpreter::kThread, raw, true) == WalkStatus::consistent);
            CHECK(raw.broken);
            CHECK(raw.frames.size() == 3);
            (void)reader.walk(FakeInterpreter::kThread, raw);
            CHECK(raw.broken);
            CHECK(target.fake.memory.reads < 200);
        }
    }
}

TEST_CASE("a frame at the end of what is mapped is read, and nothing behind it") {
    ThreeFrames target(FrameStyle::shims);
    const std::uint64_t last = 2047;  // kFrames has room for 2,048
    target.fake.set_current(target.fake.put_frame(last, target.codes[2], 4, FakeInterpreter::frame_at(1)));
    StackReader reader(target.fake.memory, target.fake.runtime, 0);
    RawStack raw;
    for (int i = 0; i < 3; ++i) {
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        CHECK(raw.frames.size() == 3);
    }
}

TEST_CASE("memory that held frames goes away between two walks") {
    ThreeFrames target(FrameStyle::shims);
    auto& fake = target.fake;
    const Address other{0x7e00'0000'0000};
    // The thread's frames once lay elsewhere.
    std::vector<std::byte> frame(FakeInterpreter::kFrameBytes);
    REQUIRE(fake.memory.fake.read_up_to(target.leaf, frame) == frame.size());
    frame.resize(4096);
    fake.memory.fake.map(other, frame);
    fake.set_current(other);
    StackReader reader(fake.memory, fake.runtime, 0);
    RawStack raw;
    REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
    fake.memory.fake.map(other, {});
    fake.set_current(target.leaf);
    CHECK(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
    CHECK(raw.frames.size() == 3);
}

// The bug's story: the current-frame word is read some hundred nanoseconds before the frames, and a short
// function has returned by then. Its frame is still in its place, linked and all, and was taken for the
// innermost one.
TEST_CASE("a frame that has been left isn't told, though the word named it a moment ago") {
    for (const FrameStyle style : kStyles) {
        CAPTURE(static_cast<int>(style));
        ThreeFrames target(style);
        auto& fake = target.fake;
        StackReader reader(fake.memory, fake.runtime, 0);
        RawStack raw;
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        // As soon as the word has been read, leaf() returns and work() goes on.
        const Address word =
            style == FrameStyle::cframe ? FakeInterpreter::kCFrame + 8 : FakeInterpreter::kThread + 16;
        bool word_read = false;
        fake.memory.on_read = [&](std::size_t, Address from) {
            if (word_read) {
                fake.put_frame(2, target.codes[2], 12, FakeInterpreter::frame_at(1), {.running = false});
                fake.put_frame(1, target.codes[1], 8, FakeInterpreter::frame_at(0), {.running = true});
            }
            word_read = word_read || from == word;
        };
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        REQUIRE(raw.frames.size() == 2);
        CHECK(raw.frames[0].code == target.codes[1]);
        CHECK(raw.frames[0].instr_offset == 8);
    }
}

TEST_CASE(
    "a stack that changes on every try is torn, told all the same, and costs a bounded number of reads") {
    for (const FrameStyle style : kStyles) {
        ThreeFrames target(style);
        auto& fake = target.fake;
        StackReader reader(fake.memory, fake.runtime, 0);
        RawStack raw;
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        // Between any two pieces the outer frames move on, so that no look agrees with another.
        std::int32_t offset = 0;
        fake.memory.on_read = [&](std::size_t, Address) {
            offset = (offset + 2) % 32;
            fake.put_frame(0, target.codes[0], offset, Address(), {.running = false, .entry = true});
            fake.put_frame(1, target.codes[1], offset, FakeInterpreter::frame_at(0), {.running = false});
            fake.put_frame(2, target.codes[2], offset, FakeInterpreter::frame_at(1),
                           {.running = offset % 4 == 0});
        };
        const std::size_t before = fake.memory.reads;
        const WalkStatus status = reader.walk(FakeInterpreter::kThread, raw);
        CHECK((status == WalkStatus::torn || status == WalkStatus::consistent));
        CHECK(raw.frames.size() <= 3);
        CHECK(fake.memory.reads - before < 400);
    }
}

// A value that comes out of a chain of generators unlinks all of them, and the next one links them again:
// read from outside, the chain ends at one of them nearly always.
TEST_CASE(
    "a generator that isn't linked to who called it is told with those that called the last whole chain") {
    for (const FrameStyle style : kStyles) {
        CAPTURE(static_cast<int>(style));
        ThreeFrames target(style);
        auto& fake = target.fake;
        const FakeInterpreter::FrameIs generator{.generator = true};
        const auto put = [&](std::uint64_t slot, Address previous) {
            fake.put_frame(slot, target.codes[2], 2 * static_cast<std::int32_t>(slot), previous, generator);
        };
        put(3, target.leaf);
        put(4, FakeInterpreter::frame_at(3));
        fake.set_current(FakeInterpreter::frame_at(4));
        StackReader reader(fake.memory, fake.runtime, 0);
        RawStack raw;
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) != WalkStatus::gone);
        REQUIRE(raw.frames.size() == 5);
        const auto whole = raw.frames;

        put(4, Address());
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::torn);
        CHECK_FALSE(raw.broken);
        CHECK(raw.frames == whole);

        put(3, Address());
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::torn);
        CHECK_FALSE(raw.broken);
        REQUIRE(raw.frames.size() == 4);
        CHECK(raw.frames[0] == whole[0]);
        CHECK(std::equal(raw.frames.begin() + 1, raw.frames.end(), whole.begin() + 2));

        // work() has gone on: leaf() isn't running any more, whatever its frame looks like.
        fake.put_frame(1, target.codes[1], 20, FakeInterpreter::frame_at(0),
                       {.running = style == FrameStyle::heap || style == FrameStyle::tagged});
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::torn);
        REQUIRE(raw.frames.size() == 3);
        CHECK(raw.frames[0] == whole[0]);
        CHECK(raw.frames[1].code == target.codes[1]);
        CHECK(raw.frames[1].instr_offset == 20);
    }
}

TEST_CASE("the holder of the GIL comes with the walk") {
    for (const FrameStyle style : kStyles) {
        ThreeFrames target(style);
        StackReader reader(target.fake.memory, target.fake.runtime, 0);
        RawStack raw;
        hold_gil(target.fake, FakeInterpreter::kThread);
        (void)reader.walk(FakeInterpreter::kThread, raw);
        CHECK(reader.gil_holder() == FakeInterpreter::kThread);
        hold_gil(target.fake, Address());
        (void)reader.walk(FakeInterpreter::kThread, raw);
        CHECK_FALSE(reader.gil_holder());
    }
}

TEST_CASE("instructions in a thread's own copy of the bytecode") {
    ThreeFrames target(FrameStyle::tagged);
    auto& fake = target.fake;
    const Address copies = fake.add_bytes(std::string(24, '\0'));
    const std::uint64_t copy = 0x5555'0000;
    fake.memory.fake.write(copies, std::int64_t{2});
    fake.memory.fake.write(copies + 16, copy);
    fake.memory.fake.write(target.codes[2] + 96, copies.value());
    StackReader reader(fake.memory, fake.runtime, 0);
    RawStack raw;
    fake.put_frame(2, target.codes[2], 8, FakeInterpreter::frame_at(1), {.copy = 1, .bytecode = copy});
    REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
    CHECK(raw.frames[0].instr_offset == 8);
    CHECK(raw.frames[1].instr_offset == 6);
    // The copy was freed and made anew elsewhere.
    fake.memory.fake.write(copies + 16, copy + 0x1000);
    fake.put_frame(2, target.codes[2], 4, FakeInterpreter::frame_at(1),
                   {.copy = 1, .bytecode = copy + 0x1000});
    REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
    CHECK(raw.frames[0].instr_offset == 4);
    // An index that the array doesn't have, and one that isn't one.
    for (const std::int32_t index : {2, -1, 0x7FFFFFFF}) {
        fake.put_frame(2, target.codes[2], 4, FakeInterpreter::frame_at(1),
                       {.copy = index, .bytecode = copy});
        REQUIRE(reader.walk(FakeInterpreter::kThread, raw) == WalkStatus::consistent);
        CHECK(raw.frames[0].instr_offset == -1);
    }
}

TEST_CASE("lists of threads and interpreters: bounded, whatever they link to") {
    for (const FrameStyle style : kStyles) {
        FakeInterpreter fake(style);
        auto& memory = fake.memory.fake;
        StackReader reader(fake.memory, fake.runtime, 0);
        auto threads = reader.threads();
        REQUIRE(threads.size() == 1);
        CHECK(threads[0].address == FakeInterpreter::kThread);
        CHECK(threads[0].interpreter == FakeInterpreter::kInterpreter);
        CHECK(threads[0].pthread == Address(0x7777));
        CHECK(threads[0].tid == (style == FrameStyle::heap ? 0 : 4242));
        // To itself, to a structure that isn't a thread state, to nowhere.
        for (const std::uint64_t next :
             {FakeInterpreter::kThread.value(), FakeInterpreter::kCodeType.value(), std::uint64_t{0x666}}) {
            memory.write(FakeInterpreter::kThread + 8, next);
            CHECK(reader.threads().size() == 1);
        }
        memory.write(FakeInterpreter::kInterpreter + 8, FakeInterpreter::kInterpreter.value());
        CHECK(reader.threads().size() == 1);
        memory.write(FakeInterpreter::kRuntime, std::uint64_t{0x666});
        CHECK(reader.threads().empty());
        CHECK(fake.memory.reads < 100);
    }
}

TEST_CASE("a runtime that finalises says so") {
    FakeInterpreter fake(FrameStyle::shims);
    const StackReader reader(fake.memory, fake.runtime, 0);
    CHECK_FALSE(reader.finalising());
    fake.memory.fake.write(FakeInterpreter::kRuntime + 8, FakeInterpreter::kThread.value());
    CHECK(reader.finalising());
}
