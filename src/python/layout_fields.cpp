#include "memattach/python/layout_fields.h"

namespace memattach::python {
namespace {

// clang-format off
#define OF(member) [](Layout& l) -> Offset& { return l.member; }

constexpr LayoutField kFields[] = {
    {"runtime.size", OF(runtime.size), {"pyruntimestate"}},
    {"runtime.interpreters_head", OF(runtime.interpreters_head), {"pyruntimestate.interpreters.head"}, OF(runtime.size)},
    {"runtime.finalizing", OF(runtime.finalizing), {"pyruntimestate._finalizing", "pyruntimestate.finalizing"}, OF(runtime.size)},
    {"runtime.tstate_current", OF(runtime.tstate_current), {"pyruntimestate.gilstate.tstate_current"}, OF(runtime.size)},
    {"runtime.gil", OF(runtime.gil), {"pyruntimestate.ceval.gil"}, OF(runtime.size)},
    {"runtime.gc", OF(runtime.gc), {"pyruntimestate.gc"}, OF(runtime.size)},

    {"interpreter.size", OF(interpreter.size), {"_is"}},
    {"interpreter.id", OF(interpreter.id), {"_is.id"}, OF(interpreter.size)},
    {"interpreter.next", OF(interpreter.next), {"_is.next"}, OF(interpreter.size)},
    {"interpreter.threads_head", OF(interpreter.threads_head), {"_is.threads.head", "_is.tstate_head"}, OF(interpreter.size)},
    {"interpreter.ceval_gil", OF(interpreter.ceval_gil), {"_is.ceval.gil"}, OF(interpreter.size)},
    {"interpreter.gil_enabled", OF(interpreter.gil_enabled), {"_is._gil.enabled"}, OF(interpreter.size)},

    {"gil.last_holder", OF(gil.last_holder), {"_gil_runtime_state.last_holder"}},
    {"gil.locked", OF(gil.locked), {"_gil_runtime_state.locked"}},

    {"thread.size", OF(thread.size), {"_ts"}},
    {"thread.prev", OF(thread.prev), {"_ts.prev"}, OF(thread.size)},
    {"thread.next", OF(thread.next), {"_ts.next"}, OF(thread.size)},
    {"thread.interp", OF(thread.interp), {"_ts.interp"}, OF(thread.size)},
    {"thread.frame", OF(thread.frame), {"_ts.current_frame", "_ts.frame"}, OF(thread.size)},
    {"thread.cframe", OF(thread.cframe), {"_ts.cframe"}, OF(thread.size)},
    {"thread.thread_id", OF(thread.thread_id), {"_ts.thread_id"}, OF(thread.size)},
    {"thread.native_thread_id", OF(thread.native_thread_id), {"_ts.native_thread_id"}, OF(thread.size)},
    {"thread.datastack_chunk", OF(thread.datastack_chunk), {"_ts.datastack_chunk"}, OF(thread.size)},
    {"thread.status", OF(thread.status), {"_ts._status"}, OF(thread.size)},

    {"cframe.current_frame", OF(cframe.current_frame), {"_PyCFrame.current_frame"}},
    {"cframe.previous", OF(cframe.previous), {"_PyCFrame.previous"}},

    {"frame.size", OF(frame.size), {"_PyInterpreterFrame", "_frame"}},
    {"frame.previous", OF(frame.previous), {"_PyInterpreterFrame.previous", "_frame.f_back"}, OF(frame.size)},
    {"frame.code", OF(frame.code), {"_PyInterpreterFrame.f_executable", "_PyInterpreterFrame.f_code", "_frame.f_code"}, OF(frame.size)},
    {"frame.instr", OF(frame.instr), {"_PyInterpreterFrame.instr_ptr", "_PyInterpreterFrame.prev_instr", "_frame.f_lasti"}, OF(frame.size)},
    {"frame.localsplus", OF(frame.localsplus), {"_PyInterpreterFrame.localsplus", "_frame.f_localsplus"}, OF(frame.size)},
    {"frame.owner", OF(frame.owner), {"_PyInterpreterFrame.owner"}, OF(frame.size)},
    {"frame.is_entry", OF(frame.is_entry), {"_PyInterpreterFrame.is_entry"}, OF(frame.size)},
    {"frame.tlbc_index", OF(frame.tlbc_index), {"_PyInterpreterFrame.tlbc_index"}, OF(frame.size)},

    {"code.size", OF(code.size), {"PyCodeObject"}},
    {"code.filename", OF(code.filename), {"PyCodeObject.co_filename"}, OF(code.size)},
    {"code.name", OF(code.name), {"PyCodeObject.co_name"}, OF(code.size)},
    {"code.qualname", OF(code.qualname), {"PyCodeObject.co_qualname"}, OF(code.size)},
    {"code.linetable", OF(code.linetable), {"PyCodeObject.co_linetable", "PyCodeObject.co_lnotab"}, OF(code.size)},
    {"code.firstlineno", OF(code.firstlineno), {"PyCodeObject.co_firstlineno"}, OF(code.size)},
    {"code.bytecode", OF(code.bytecode), {"PyCodeObject.co_code_adaptive", "PyCodeObject.co_code"}, OF(code.size)},
    {"code.tlbc", OF(code.tlbc), {"PyCodeObject.co_tlbc"}, OF(code.size)},

    {"object.type", OF(object.type), {"_object.ob_type"}},
    {"bytes.size", OF(bytes.size), {"PyBytesObject.ob_base.ob_size"}},
    {"bytes.data", OF(bytes.data), {"PyBytesObject.ob_sval"}},
    {"unicode.state", OF(unicode.state), {"PyASCIIObject.state"}, OF(unicode.ascii_size)},
    {"unicode.length", OF(unicode.length), {"PyASCIIObject.length"}, OF(unicode.ascii_size)},
    {"unicode.ascii_size", OF(unicode.ascii_size), {"PyASCIIObject"}},
    {"unicode.compact_size", OF(unicode.compact_size), {"PyCompactUnicodeObject"}},
    {"type.name", OF(type.name), {"_typeobject.tp_name"}},
    {"gc.interpreter_gc", OF(gc.interpreter_gc), {"_is.gc"}, OF(interpreter.size)},
    {"gc.collecting", OF(gc.collecting), {"_gc_runtime_state.collecting"}},
};
// clang-format on
#undef OF

}  // namespace

std::span<const LayoutField> layout_fields() {
    return kFields;
}

}  // namespace memattach::python
