#include "memattach/python/sanity.h"

#include <doctest/doctest.h>

#include <cstring>

#include "memattach/python/layout_sources.h"
#include "process/fake_memory.h"

using namespace memattach;
using base::Address;
using python::Sanity;

namespace {

/// The least of an interpreter that runs one frame, laid out as a built-in table says. Everything lies on
/// pages of its own: reading past a structure fails.
class FakeInterpreter {
  public:
    explicit FakeInterpreter(const python::BuiltInLayout& table) : layout(table.layout) {
        python::apply_version(table.version, layout);
        for (const Address page :
             {runtime, interpreter, thread, cframe, frame, code, name, table_bytes, types, texts, gil})
            memory.map_zeros(page, 0x1000);
        memory.map_zeros(runtime, layout.runtime.size);
        memory.map_zeros(interpreter, layout.interpreter.size);
        point(runtime + layout.runtime.interpreters_head, interpreter);
        point(interpreter + layout.interpreter.threads_head, thread);
        point(thread + layout.thread.interp, interpreter);
        if (layout.thread.frame != python::kAbsent) {
            point(thread + layout.thread.frame, frame);
        } else {
            point(thread + layout.thread.cframe, cframe);
            point(cframe + layout.cframe.current_frame, frame);
        }
        if (layout.interpreter.ceval_gil != python::kAbsent)
            point(interpreter + layout.interpreter.ceval_gil, gil);
        point(frame + layout.frame.code, code);
        object(code, 0, "code");
        object(name, 1, "str");
        object(table_bytes, 2, "bytes");
        point(code + layout.code.name, name);
        point(code + layout.code.filename, name);
        point(code + layout.code.linetable, table_bytes);
        memory.write<std::int64_t>(name + layout.unicode.length, 7);
    }

    Sanity check() { return python::check_layout(memory, runtime, layout, why); }
    void point(Address at, Address to) { memory.write(at, to.value()); }

    test::FakeMemory memory;
    python::Layout layout;
    std::string why;
    Address runtime{0x100000}, interpreter{0x200000}, thread{0x400000}, cframe{0x500000}, frame{0x600000},
        code{0x700000}, name{0x800000}, table_bytes{0x900000}, types{0xa00000}, texts{0xb00000},
        gil{0xc00000};

  private:
    void object(Address at, std::uint64_t number, const char* type_name) {
        const Address type = types + number * 0x100;
        const Address text = texts + number * 0x100;
        point(at + layout.object.type, type);
        point(type + layout.type.name, text);
        for (std::size_t i = 0; i < std::strlen(type_name); ++i) memory.write(text + i, type_name[i]);
    }
};

template <typename Change>
void check_each(Sanity expected, Change change) {
    for (const python::BuiltInLayout& table : python::built_in_layouts()) {
        CAPTURE(table.version.minor);
        FakeInterpreter fake(table);
        change(fake);
        const Sanity result = fake.check();
        CAPTURE(fake.why);
        CHECK(result == expected);
    }
}

}  // namespace

TEST_CASE("an interpreter that is as its layout says") {
    check_each(Sanity::confirmed, [](FakeInterpreter&) {});
}

TEST_CASE("not started: no interpreter, or one without threads") {
    check_each(Sanity::not_started, [](FakeInterpreter& f) {
        f.point(f.runtime + f.layout.runtime.interpreters_head, Address());
    });
    check_each(Sanity::not_started, [](FakeInterpreter& f) {
        f.point(f.interpreter + f.layout.interpreter.threads_head, Address());
    });
}

TEST_CASE("an embedding program that runs no Python now") {
    check_each(Sanity::no_frames, [](FakeInterpreter& f) {
        if (f.layout.thread.frame != python::kAbsent) {
            f.point(f.thread + f.layout.thread.frame, Address());
        } else {
            f.point(f.cframe + f.layout.cframe.current_frame, Address());
        }
    });
}

TEST_CASE("each structure that isn't what it should be is noticed") {
    check_each(Sanity::contradicted,
               [](FakeInterpreter& f) { f.point(f.thread + f.layout.thread.interp, f.code); });
    check_each(Sanity::contradicted,
               [](FakeInterpreter& f) { f.point(f.thread + f.layout.thread.prev, f.code); });
    check_each(Sanity::contradicted,
               [](FakeInterpreter& f) { f.point(f.code + f.layout.object.type, f.texts); });
    check_each(Sanity::contradicted,
               [](FakeInterpreter& f) { f.point(f.code + f.layout.code.name, f.code); });
    check_each(Sanity::contradicted,
               [](FakeInterpreter& f) { f.point(f.code + f.layout.code.filename, Address(8)); });
    check_each(Sanity::contradicted,
               [](FakeInterpreter& f) { f.point(f.code + f.layout.code.linetable, f.name); });
    check_each(Sanity::contradicted, [](FakeInterpreter& f) {
        f.memory.write<std::int64_t>(f.name + f.layout.unicode.length, -1);
    });
    check_each(Sanity::contradicted, [](FakeInterpreter& f) {
        f.point(f.runtime + f.layout.runtime.interpreters_head, Address(0xdead0000));
    });
    check_each(Sanity::contradicted, [](FakeInterpreter& f) {
        f.point(f.frame + f.layout.frame.code, Address(~std::uint64_t{7}));
    });
}

TEST_CASE("the GIL's holder or lock that can't be one") {
    check_each(Sanity::contradicted, [](FakeInterpreter& f) {
        if (f.layout.runtime.tstate_current != python::kAbsent) {
            f.point(f.runtime + f.layout.runtime.tstate_current, f.texts);
        } else {
            f.memory.write<std::int32_t>(f.gil + f.layout.gil.locked, 77);
        }
    });
    check_each(Sanity::confirmed, [](FakeInterpreter& f) {
        if (f.layout.runtime.tstate_current != python::kAbsent) {
            f.point(f.runtime + f.layout.runtime.tstate_current, f.thread);
        } else {
            f.memory.write<std::int32_t>(f.gil + f.layout.gil.locked, 1);
        }
    });
}

TEST_CASE("the table of one version is not taken for another's") {
    for (const python::BuiltInLayout& table : python::built_in_layouts()) {
        FakeInterpreter fake(table);
        for (const python::BuiltInLayout& other : python::built_in_layouts()) {
            // 3.8 to 3.10 differ in none of the offsets that the check walks along.
            const bool both_early = other.version.minor <= 10 && table.version.minor <= 10;
            if (other.version == table.version || both_early) continue;
            python::Layout layout = other.layout;
            python::apply_version(other.version, layout);
            CAPTURE(table.version.minor);
            CAPTURE(other.version.minor);
            CHECK(python::check_layout(fake.memory, fake.runtime, layout, fake.why) != Sanity::confirmed);
        }
    }
}

TEST_CASE("cycles end") {
    check_each(Sanity::not_started, [](FakeInterpreter& f) {
        f.point(f.interpreter + f.layout.interpreter.threads_head, Address());
        f.point(f.interpreter + f.layout.interpreter.next, f.interpreter);
    });
    for (const python::BuiltInLayout& table : python::built_in_layouts()) {
        FakeInterpreter f(table);
        f.point(f.frame + f.layout.frame.code, f.name);
        f.point(f.frame + f.layout.frame.previous, f.frame);
        CHECK(f.check() == Sanity::contradicted);
        CHECK(f.memory.reads < 10'000);
    }
}
