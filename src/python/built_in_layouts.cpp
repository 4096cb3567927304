// Written by tools/gen-layouts from the DWARF of the builds named in kTables. Don't edit.
// clang-format off
#include <array>

#include "memattach/python/layout_sources.h"

namespace memattach::python {
namespace {

constexpr Layout layout_3_8() {
    Layout l;
    l.runtime.size = 1464;
    l.runtime.interpreters_head = 32;
    l.runtime.finalizing = 16;
    l.runtime.tstate_current = 1368;
    l.runtime.gil = 1152;
    l.runtime.gc = 344;
    l.interpreter.size = 2720;
    l.interpreter.id = 16;
    l.interpreter.next = 0;
    l.interpreter.threads_head = 8;
    l.gil.last_holder = 8;
    l.gil.locked = 16;
    l.thread.size = 264;
    l.thread.prev = 0;
    l.thread.next = 8;
    l.thread.interp = 16;
    l.thread.frame = 24;
    l.thread.thread_id = 176;
    l.frame.size = 368;
    l.frame.previous = 24;
    l.frame.code = 32;
    l.frame.instr = 104;
    l.frame.localsplus = 360;
    l.code.size = 176;
    l.code.filename = 104;
    l.code.name = 112;
    l.code.linetable = 120;
    l.code.firstlineno = 40;
    l.code.bytecode = 48;
    l.object.type = 8;
    l.bytes.size = 16;
    l.bytes.data = 32;
    l.unicode.state = 32;
    l.unicode.length = 16;
    l.unicode.ascii_size = 48;
    l.unicode.compact_size = 72;
    l.type.name = 24;
    l.gc.collecting = 200;
    return l;
}

constexpr Layout layout_3_9() {
    Layout l;
    l.runtime.size = 656;
    l.runtime.interpreters_head = 32;
    l.runtime.finalizing = 16;
    l.runtime.tstate_current = 568;
    l.runtime.gil = 352;
    l.interpreter.size = 5656;
    l.interpreter.id = 24;
    l.interpreter.next = 0;
    l.interpreter.threads_head = 8;
    l.gil.last_holder = 8;
    l.gil.locked = 16;
    l.thread.size = 264;
    l.thread.prev = 0;
    l.thread.next = 8;
    l.thread.interp = 16;
    l.thread.frame = 24;
    l.thread.thread_id = 176;
    l.frame.size = 368;
    l.frame.previous = 24;
    l.frame.code = 32;
    l.frame.instr = 104;
    l.frame.localsplus = 360;
    l.code.size = 176;
    l.code.filename = 104;
    l.code.name = 112;
    l.code.linetable = 120;
    l.code.firstlineno = 40;
    l.code.bytecode = 48;
    l.object.type = 8;
    l.bytes.size = 16;
    l.bytes.data = 32;
    l.unicode.state = 32;
    l.unicode.length = 16;
    l.unicode.ascii_size = 48;
    l.unicode.compact_size = 72;
    l.type.name = 24;
    l.gc.interpreter_gc = 616;
    l.gc.collecting = 200;
    return l;
}

constexpr Layout layout_3_10() {
    Layout l;
    l.runtime.size = 672;
    l.runtime.interpreters_head = 32;
    l.runtime.finalizing = 16;
    l.runtime.tstate_current = 568;
    l.runtime.gil = 352;
    l.interpreter.size = 113528;
    l.interpreter.id = 24;
    l.interpreter.next = 0;
    l.interpreter.threads_head = 8;
    l.gil.last_holder = 8;
    l.gil.locked = 16;
    l.thread.size = 280;
    l.thread.prev = 0;
    l.thread.next = 8;
    l.thread.interp = 16;
    l.thread.frame = 24;
    l.thread.thread_id = 176;
    l.frame.size = 360;
    l.frame.previous = 24;
    l.frame.code = 32;
    l.frame.instr = 96;
    l.frame.localsplus = 352;
    l.code.size = 176;
    l.code.filename = 104;
    l.code.name = 112;
    l.code.linetable = 120;
    l.code.firstlineno = 40;
    l.code.bytecode = 48;
    l.object.type = 8;
    l.bytes.size = 16;
    l.bytes.data = 32;
    l.unicode.state = 32;
    l.unicode.length = 16;
    l.unicode.ascii_size = 48;
    l.unicode.compact_size = 72;
    l.type.name = 24;
    l.gc.interpreter_gc = 616;
    l.gc.collecting = 200;
    return l;
}

constexpr Layout layout_3_11() {
    Layout l;
    l.runtime.size = 166688;
    l.runtime.interpreters_head = 40;
    l.runtime.finalizing = 24;
    l.runtime.tstate_current = 576;
    l.runtime.gil = 360;
    l.interpreter.size = 107752;
    l.interpreter.id = 48;
    l.interpreter.next = 0;
    l.interpreter.threads_head = 16;
    l.gil.last_holder = 8;
    l.gil.locked = 16;
    l.thread.size = 360;
    l.thread.prev = 0;
    l.thread.next = 8;
    l.thread.interp = 16;
    l.thread.cframe = 56;
    l.thread.thread_id = 152;
    l.thread.native_thread_id = 160;
    l.thread.datastack_chunk = 296;
    l.cframe.current_frame = 8;
    l.cframe.previous = 16;
    l.frame.size = 80;
    l.frame.previous = 48;
    l.frame.code = 32;
    l.frame.instr = 56;
    l.frame.localsplus = 72;
    l.frame.owner = 69;
    l.frame.is_entry = 68;
    l.code.size = 192;
    l.code.filename = 112;
    l.code.name = 120;
    l.code.qualname = 128;
    l.code.linetable = 136;
    l.code.firstlineno = 72;
    l.code.bytecode = 184;
    l.object.type = 8;
    l.bytes.size = 16;
    l.bytes.data = 32;
    l.unicode.state = 32;
    l.unicode.length = 16;
    l.unicode.ascii_size = 48;
    l.unicode.compact_size = 72;
    l.type.name = 24;
    l.gc.interpreter_gc = 648;
    l.gc.collecting = 200;
    return l;
}

constexpr Layout layout_3_12() {
    Layout l;
    l.runtime.size = 459944;
    l.runtime.interpreters_head = 40;
    l.runtime.finalizing = 24;
    l.interpreter.size = 383552;
    l.interpreter.id = 8;
    l.interpreter.next = 0;
    l.interpreter.threads_head = 72;
    l.interpreter.ceval_gil = 384;
    l.gil.last_holder = 8;
    l.gil.locked = 16;
    l.thread.size = 288;
    l.thread.prev = 0;
    l.thread.next = 8;
    l.thread.interp = 16;
    l.thread.cframe = 56;
    l.thread.thread_id = 136;
    l.thread.native_thread_id = 144;
    l.thread.datastack_chunk = 232;
    l.thread.status = 24;
    l.cframe.current_frame = 0;
    l.cframe.previous = 8;
    l.frame.size = 80;
    l.frame.previous = 8;
    l.frame.code = 0;
    l.frame.instr = 56;
    l.frame.localsplus = 72;
    l.frame.owner = 70;
    l.code.size = 200;
    l.code.filename = 112;
    l.code.name = 120;
    l.code.qualname = 128;
    l.code.linetable = 136;
    l.code.firstlineno = 68;
    l.code.bytecode = 192;
    l.object.type = 8;
    l.bytes.size = 16;
    l.bytes.data = 32;
    l.unicode.state = 32;
    l.unicode.length = 16;
    l.unicode.ascii_size = 40;
    l.unicode.compact_size = 56;
    l.type.name = 24;
    l.gc.interpreter_gc = 112;
    l.gc.collecting = 200;
    return l;
}

constexpr std::array<BuiltInLayout, 5> kTables = {{
    // version, free-threaded, build id, file
    {{3, 8, 18, 0x030812f0}, false, "ff2a4988bea9e9bbbb8004eb6e74cc0792734c3b", "libpython3.8.so.1.0", layout_3_8()},
    {{3, 9, 18, 0x030912f0}, false, "8a6cadea533dd782615a0f14a75b5aef248a10d4", "libpython3.9.so.1.0", layout_3_9()},
    {{3, 10, 13, 0x030a0df0}, false, "ece57af647dd10ee274f46d757d62a5eab42c418", "libpython3.10.so.1.0", layout_3_10()},
    {{3, 11, 7, 0x030b07f0}, false, "49daf84ed369fe589b73ea876f2591cd4c3588bb", "libpython3.11.so.1.0", layout_3_11()},
    {{3, 12, 1, 0x030c01f0}, false, "f9d5c82f5f2c22df68c1d49c944ef3dee5103dcc", "libpython3.12.so.1.0", layout_3_12()},
}};

}  // namespace

std::span<const BuiltInLayout> built_in_layouts() { return kTables; }

}  // namespace memattach::python
