#include <doctest/doctest.h>

#include "fake_interpreter.h"
#include "memattach/python/reader.h"

using namespace memattach;
using base::Address;
using python::CodeCache;
using python::RawStack;
using test::FakeInterpreter;
using test::FrameStyle;

namespace {

/// Resolves stacks of one frame.
struct OneFrame {
    explicit OneFrame(FakeInterpreter& fake, const CodeCache::Options& options = {})
        : codes(fake.memory, fake.runtime, table, options) {}

    const trace::Function& function(Address code, std::int32_t offset = 0) {
        RawStack raw;
        raw.frames.push_back({code, offset, false});
        codes.resolve(raw, stack, losses);
        REQUIRE(stack.size() == 1);
        return table.at(stack[0].function);
    }

    trace::FunctionTable table;
    CodeCache codes;
    trace::Stack stack;
    trace::LossCounts losses;
};

}  // namespace

TEST_CASE("names in every layout of str become UTF-8") {
    FakeInterpreter fake(FrameStyle::shims);
    OneFrame one(fake);
    const Address file = fake.add_text("/srv/app.py");
    const auto name_of = [&](Address name) { return one.function(fake.add_code(name, file, 1)).name; };
    CHECK(name_of(fake.add_text("plain")) == "plain");
    CHECK(name_of(fake.add_text("")) == "");
    CHECK(name_of(fake.add_text(std::string_view("\xF1"
                                                 "and\xFA"),
                                ~0ULL, false)) == "ñandú");
    CHECK(name_of(fake.add_text(std::u16string_view(u"函数"), ~0ULL, false)) == "函数");
    CHECK(name_of(fake.add_text(std::u32string_view(U"a𝔵"), ~0ULL, false)) == "a𝔵");
    // What CPython makes of bytes of a file name that aren't UTF-8, and what is no code point at all.
    const std::u32string odd{U'a', char32_t(0xDCFF), char32_t(0x7FFFFFFF)};
    CHECK(name_of(fake.add_text(std::u32string_view(odd), ~0ULL, false)) == "a\uFFFD\uFFFD");
}

TEST_CASE("a name that claims to be huge costs no more than is kept of it") {
    FakeInterpreter fake(FrameStyle::shims);
    OneFrame one(fake);
    const Address file = fake.add_text("/srv/app.py");
    const std::string text(100'000, 'x');
    // 1 GB claimed of a string that has 100 KB of bytes: its beginning.
    const auto& name =
        one.function(fake.add_code(fake.add_text(std::string_view(text), 1ULL << 30U), file, 1)).name;
    CHECK(name.size() <= 4100);
    CHECK(name.ends_with("…"));
    // Lengths without bytes behind them, and negative ones: not readable.
    for (const std::uint64_t length : {1ULL << 30U, 1ULL << 63U, ~1ULL}) {
        const Address code = fake.add_code(fake.add_text(std::string_view("short"), length), file, 1);
        CHECK(one.function(code).kind == trace::FunctionKind::marker);
    }
    CHECK(one.losses[trace::Loss::unreadable_stacks] == 3);
}

TEST_CASE("a line table that claims to be huge is left out, the function is still told") {
    FakeInterpreter fake(FrameStyle::shims);
    OneFrame one(fake);
    for (const std::uint64_t size : {1ULL << 22U, 1ULL << 40U, 1ULL << 63U, ~0ULL}) {
        const Address code = fake.add_code("f");
        fake.memory.fake.write(code + 56, fake.add_bytes_object({}, size).value());
        CHECK(one.function(code, 4).name == "f");
        CHECK(one.stack[0].line == 0);
    }
}

TEST_CASE("what isn't a code object is an unknown frame") {
    FakeInterpreter fake(FrameStyle::shims);
    OneFrame one(fake);
    const Address code = fake.add_code("f");
    const Address dict_type{0x70000};
    fake.memory.fake.map_zeros(dict_type, 32);
    fake.memory.fake.write(dict_type + 24, fake.add_bytes("dict").value());
    fake.memory.fake.write(code + 8, dict_type.value());
    CHECK(one.function(code).name == "[unknown frame]");
    CHECK(one.function(Address(0x6660)).name == "[unknown frame]");
    CHECK(one.losses[trace::Loss::unreadable_stacks] == 2);
}

TEST_CASE("a code object is freed and another one gets its address") {
    for (const bool only_lines : {false, true}) {
        FakeInterpreter fake(FrameStyle::shims);
        OneFrame one(fake, {.trust_changed_ns = 0, .trust_unchanged_ns = 0});
        const Address name = fake.add_text("first");
        const Address file = fake.add_text("/srv/app.py");
        const Address code = fake.add_code(name, file, 10);
        CHECK(one.function(code, 4).name == "first");
        CHECK(one.stack[0].line == 12);
        if (only_lines) {
            // The same names and first line, and a line table of the same size at the same address: exec() in
            // a loop.
            const auto table = fake.memory.fake.read<std::uint64_t>(code + 56);
            fake.memory.fake.write(Address(*table) + 32 + 1, std::byte{8});
            (void)one.function(code, 4);
            CHECK(one.stack[0].line == 16);
        } else {
            fake.fill_code(code, fake.add_text("second"), file, 30);
            CHECK(one.function(code, 4).name == "second");
            CHECK(one.stack[0].line == 32);
        }
    }
}

TEST_CASE("within the time that an entry is trusted nothing is read at all") {
    FakeInterpreter fake(FrameStyle::shims);
    OneFrame one(fake, {.trust_changed_ns = ~0ULL, .trust_unchanged_ns = ~0ULL});
    const Address code = fake.add_code("f");
    (void)one.function(code, 4);
    const std::size_t before = fake.memory.reads;
    for (int i = 0; i < 10; ++i) CHECK(one.function(code, 2 * i).name == "f");
    CHECK(fake.memory.reads == before);
}

TEST_CASE("the cache is bounded") {
    FakeInterpreter fake(FrameStyle::shims);
    OneFrame one(fake, {.max_codes = 50});
    for (int i = 0; i < 300; ++i) {
        (void)one.function(fake.add_code("f", i));
        CHECK(one.codes.code_count() <= 52);
    }
}

TEST_CASE("the interpreter's own code below an __init__ isn't told") {
    FakeInterpreter fake(FrameStyle::shims);
    trace::FunctionTable table;
    CodeCache codes(fake.memory, fake.runtime, table);
    const Address init = fake.add_text("__init__");
    const Address cleanup = fake.add_code(init, init, 0);
    fake.memory.fake.write(cleanup + 56, fake.add_bytes_object({std::byte{0xFB}}, 1).value());
    RawStack raw;
    raw.frames = {
        {fake.add_code("A.__init__"), 2, false}, {cleanup, 2, false}, {fake.add_code("main"), 2, true}};
    trace::Stack stack;
    trace::LossCounts losses;
    codes.resolve(raw, stack, losses);
    REQUIRE(stack.size() == 2);
    CHECK(table.at(stack[0].function).name == "A.__init__");
    CHECK(table.at(stack[1].function).name == "main");
    CHECK(codes.entries() == std::vector<bool>{false, true});
}

TEST_CASE("what is missing of a stack is marked and counted") {
    FakeInterpreter fake(FrameStyle::shims);
    trace::FunctionTable table;
    CodeCache codes(fake.memory, fake.runtime, table);
    RawStack raw;
    raw.frames = {{fake.add_code("f"), 2, false}};
    raw.truncated = true;
    trace::Stack stack;
    trace::LossCounts losses;
    codes.resolve(raw, stack, losses);
    CHECK(table.at(stack.back().function).name == "[truncated]");
    raw.truncated = false;
    raw.broken = true;
    codes.resolve(raw, stack, losses);
    CHECK(table.at(stack.back().function).name == "[unknown frame]");
    CHECK(losses[trace::Loss::truncated_stacks] == 1);
    CHECK(losses[trace::Loss::unreadable_stacks] == 1);
}
