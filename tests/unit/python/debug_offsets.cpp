#include <doctest/doctest.h>

#include <cstring>

#include "corpus.h"
#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

using namespace memattach;
using python::kAbsent;

namespace {

std::optional<python::DebugOffsets> parse(const std::vector<std::byte>& bytes) {
    std::string why;
    auto found = python::parse_debug_offsets(bytes, why);
    CHECK(found.has_value() == why.empty());
    return found;
}

void set_word(std::vector<std::byte>& bytes, std::size_t index, std::uint64_t value) {
    std::memcpy(bytes.data() + index * 8, &value, 8);
}

}  // namespace

// The bytes are those of Debian's builds; the numbers beside them are what gdb said about offsetof in pyenv's
// 3.13.0 and what the headers of 3.14 and 3.15 give.
TEST_CASE("3.13") {
    const auto found = parse(test::corpus("python_debug_offsets/3.13.5"));
    REQUIRE(found);
    CHECK(found->version == python::Version{3, 13, 5, 0x030d05f0});
    CHECK(found->known_shape);
    CHECK_FALSE(found->free_threaded);
    const python::Layout& l = found->layout;
    CHECK(l.thread.next == 8);
    CHECK(l.thread.interp == 16);
    CHECK(l.thread.frame == 72);
    CHECK(l.frame.code == 0);
    CHECK(l.frame.previous == 8);
    CHECK(l.frame.instr == 56);
    CHECK(l.frame.owner == 70);
    CHECK(l.code.filename == 112);
    CHECK(l.code.bytecode == 208 - 8);
    CHECK(l.unicode.ascii_size == 40);
    CHECK(l.unicode.compact_size == 56);
    CHECK(l.bytes.size == 16);
    CHECK(l.bytes.data == 32);
    CHECK(l.gil.last_holder == 8);
    CHECK(l.gil.locked == 16);
    CHECK(l.owner_shim == 3);
    CHECK(l.stackref_tag_mask == 0);
    CHECK(l.instr_kind == python::InstrKind::instr_ptr);
    CHECK(l.frame.tlbc_index == kAbsent);
    CHECK(l.interpreter.gil_enabled == kAbsent);
}

TEST_CASE("3.14 and 3.15 have other words in between, and tags on frames' code") {
    for (const char* name : {"python_debug_offsets/3.14.10", "python_debug_offsets/3.15.2"}) {
        CAPTURE(name);
        const auto found = parse(test::corpus(name));
        REQUIRE(found);
        const python::Layout& l = found->layout;
        CHECK(l.frame.code == 0);
        CHECK(l.frame.previous == 8);
        CHECK(l.frame.instr == 56);
        CHECK(l.frame.localsplus == 80);
        CHECK(l.frame.owner == 74);
        CHECK(l.thread.interp == 16);
        CHECK(l.type.name == 24);
        CHECK(l.unicode.compact_size == l.unicode.ascii_size + 16);
        CHECK(l.gil.last_holder == 8);
        CHECK(l.stackref_tag_mask == 3);
    }
}

// Nobody packages these builds: the bytes are what gcc makes of the headers with Py_GIL_DISABLED, the numbers
// what it says of the same headers' structures.
TEST_CASE("free-threaded 3.14 and 3.15: larger objects, and where their copies of the bytecode are") {
    for (const char* name : {"python_debug_offsets/3.14.10t", "python_debug_offsets/3.15.2t"}) {
        CAPTURE(name);
        const auto found = parse(test::corpus(name));
        REQUIRE(found);
        CHECK(found->free_threaded);
        CHECK(found->known_shape);
        const bool newer = found->version.minor == 15;
        const python::Layout& l = found->layout;
        CHECK(l.interpreter.next == (newer ? 7264 : 7272));
        CHECK(l.interpreter.id == (newer ? 7272 : 7280));
        CHECK(l.interpreter.threads_head == (newer ? 7336 : 7344));
        CHECK(l.interpreter.ceval_gil == 16);
        CHECK(l.interpreter.gil_enabled == (newer ? 7736 : 7808));
        CHECK(l.gil.last_holder == 16);
        CHECK(l.gil.locked == 24);
        CHECK(l.thread.next == 8);
        CHECK(l.thread.interp == 16);
        CHECK(l.thread.frame == 72);
        CHECK(l.thread.thread_id == (newer ? 176 : 152));
        CHECK(l.thread.native_thread_id == (newer ? 184 : 160));
        CHECK(l.frame.code == 0);
        CHECK(l.frame.previous == 8);
        CHECK(l.frame.instr == 56);
        CHECK(l.frame.localsplus == 80);
        CHECK(l.frame.tlbc_index == 72);
        CHECK(l.frame.owner == 78);
        CHECK(l.code.firstlineno == 84);
        CHECK(l.code.filename == 128);
        CHECK(l.code.qualname == 144);
        CHECK(l.code.linetable == 152);
        CHECK(l.code.tlbc == 224);
        CHECK(l.code.bytecode == 232);
        CHECK(l.object.type == 24);
        CHECK(l.type.name == 40);
        CHECK(l.bytes.size == 32);
        CHECK(l.bytes.data == 48);
        CHECK(l.unicode.length == 32);
        CHECK(l.unicode.state == 48);
        CHECK(l.unicode.ascii_size == 56);
        CHECK(l.unicode.compact_size == 72);
    }
}

TEST_CASE("a newer minor version is read as the newest known, and that is said") {
    const auto found = parse(test::corpus("python_debug_offsets/newer_minor"));
    REQUIRE(found);
    CHECK(found->version.minor == 16);
    CHECK_FALSE(found->known_shape);
    CHECK(python::newest_known_version() == "3.15");
}

TEST_CASE("damage in any one word is noticed or harmless: no accepted offset leaves its structure") {
    const auto good = test::corpus("python_debug_offsets/3.15.2");
    for (std::size_t word = 0; word < good.size() / 8; ++word) {
        for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{1} << 20, ~std::uint64_t{0}}) {
            auto bytes = good;
            set_word(bytes, word, value);
            std::string why;
            const auto found = python::parse_debug_offsets(bytes, why);
            if (!found) continue;
            CAPTURE(word);
            for (const python::LayoutField& field : python::layout_fields()) {
                if (field.bound == nullptr || python::get(field, found->layout) == kAbsent) continue;
                python::Layout layout = found->layout;
                CHECK(field.of(layout) < field.bound(layout));
            }
        }
    }
}

TEST_CASE("cut off anywhere: nothing") {
    auto bytes = test::corpus("python_debug_offsets/3.13.5");
    for (std::size_t size = 0; size < 73 * 8; size += 3) {
        std::string why;
        CHECK_FALSE(python::parse_debug_offsets(std::span(bytes).first(size), why));
        CHECK_FALSE(why.empty());
    }
}

TEST_CASE("what isn't 3.13 or newer") {
    auto bytes = test::corpus("python_debug_offsets/3.13.5");
    set_word(bytes, 1, 0x030c01f0);
    std::string why;
    CHECK_FALSE(python::parse_debug_offsets(bytes, why));
    CHECK(why.find("3.12") != std::string::npos);
    set_word(bytes, 0, 0);
    CHECK_FALSE(python::parse_debug_offsets(bytes, why));
    CHECK(why == "_PyRuntime carries no debug offsets");
}

TEST_CASE("every built-in table is plausible, of a version of its own, and names its build") {
    int last_minor = 7;
    for (const python::BuiltInLayout& table : python::built_in_layouts()) {
        CAPTURE(table.version.minor);
        CHECK(table.version.minor == last_minor + 1);
        last_minor = table.version.minor;
        python::Layout layout = table.layout;
        python::apply_version(table.version, layout);
        std::string why;
        CHECK(python::is_plausible(layout, why));
        CHECK(table.build_id.size() == 40);
        // Exactly one way to a thread's frame, and to the holder of the GIL.
        CHECK((layout.thread.frame == kAbsent) == (layout.cframe.current_frame != kAbsent));
        CHECK((layout.runtime.tstate_current == kAbsent) == (layout.interpreter.ceval_gil != kAbsent));
    }
    CHECK(last_minor == 12);
}
