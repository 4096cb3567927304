/// What differs between CPython versions, as data. A Layout is filled from `_Py_DebugOffsets` in the target
/// (3.13+), from DWARF, or from a built-in table; whoever walks the interpreter's structures asks the Layout
/// and never the version.
///
/// All offsets are in bytes from the start of their structure. kAbsent marks a field that this version
/// doesn't have.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memattach/base/address.h"

namespace memattach::python {

inline constexpr std::uint32_t kAbsent = 0xFFFFFFFF;
using Offset = std::uint32_t;

struct Version {
    int major = 0;
    int minor = 0;
    int micro = 0;
    /// PY_VERSION_HEX, with the release level (0xA alpha, 0xB beta, 0xC candidate, 0xF final) in bits 4–7.
    std::uint32_t hex = 0;
    bool operator==(const Version&) const = default;
};

/// How an interpreter frame says where it is executing.
enum class InstrKind : std::uint8_t {
    lasti_bytes,     ///< 3.8, 3.9: int f_lasti, in bytes, of the last executed instruction
    lasti_units,     ///< 3.10: int f_lasti, in 2-byte code units
    prev_instr_ptr,  ///< 3.11, 3.12: pointer to the last executed instruction
    instr_ptr,       ///< 3.13+: pointer to the instruction being executed, or the next one after a call; see
                     ///< reader
};

/// How a frame itself says whether it is running: a frame that has just been left keeps its place and most of
/// its words, and a reader that doesn't stop the target must tell the two apart.
enum class RunningKind : std::uint8_t {
    unknown,
    executing_flag,  ///< 3.8, 3.9: char f_executing, not 0 from the eval loop's begin to its end
    state_zero,      ///< 3.10: signed char f_state, 0 (FRAME_EXECUTING) likewise
    stack_top,  ///< 3.11–3.13: int stacktop, −1 in the innermost frame of each eval loop, else at least 0
    code_cleared,  ///< 3.14+: the code object's reference is cleared when the frame is left
};

/// Which encoding co_linetable / co_lnotab has.
enum class LineTableKind : std::uint8_t {
    lnotab,         ///< 3.8, 3.9: co_lnotab, signed line deltas
    linetable_310,  ///< 3.10: PEP 626
    locations,      ///< 3.11+: location table with columns
};

struct Layout {
    struct Runtime {  // _PyRuntimeState
        Offset size = kAbsent;
        Offset interpreters_head = kAbsent;
        Offset finalizing = kAbsent;      ///< a thread state pointer, not null while finalising
        Offset tstate_current = kAbsent;  ///< 3.8–3.11: gilstate.tstate_current, the GIL's holder
        Offset gil = kAbsent;             ///< 3.8–3.11: ceval.gil, the struct _gil_runtime_state itself
        Offset gc = kAbsent;  ///< 3.8: of struct _gc_runtime_state in it; later see gc.interpreter_gc
    } runtime;
    struct Interpreter {  // PyInterpreterState
        Offset size = kAbsent;
        Offset id = kAbsent;
        Offset next = kAbsent;
        Offset threads_head = kAbsent;
        Offset ceval_gil = kAbsent;  ///< 3.12+: pointer to struct _gil_runtime_state
        Offset gil_enabled =
            kAbsent;  ///< free-threaded only: _gil.enabled, an int within the interpreter state
    } interpreter;
    struct Gil {                       // struct _gil_runtime_state, 3.12+
        Offset last_holder = kAbsent;  ///< thread state pointer
        Offset locked = kAbsent;       ///< int
    } gil;
    struct Thread {  // PyThreadState
        Offset size = kAbsent;
        Offset prev = kAbsent;
        Offset next = kAbsent;
        Offset interp = kAbsent;
        Offset frame = kAbsent;      ///< 3.8–3.10 `frame`, 3.13+ `current_frame`; 3.11, 3.12: see cframe
        Offset cframe = kAbsent;     ///< 3.11, 3.12: pointer to struct _PyCFrame
        Offset thread_id = kAbsent;  ///< pthread_t
        Offset native_thread_id = kAbsent;  ///< 3.11+: the kernel's tid, in the target's own pid namespace
        Offset datastack_chunk = kAbsent;   ///< 3.11+
        Offset status = kAbsent;            ///< 3.12+
    } thread;
    struct CFrame {  // struct _PyCFrame, 3.11 and 3.12
        Offset current_frame = kAbsent;
        Offset previous = kAbsent;
    } cframe;
    struct Frame {  // PyFrameObject (3.8–3.10) or _PyInterpreterFrame (3.11+)
        Offset size = kAbsent;
        Offset previous = kAbsent;  ///< f_back or previous
        Offset code = kAbsent;      ///< f_code or f_executable; its low bits may be a stackref's tag (3.14+)
        Offset instr = kAbsent;     ///< f_lasti, prev_instr or instr_ptr
        Offset localsplus = kAbsent;
        Offset owner = kAbsent;     ///< 3.11+: char, enum _frameowner
        Offset is_entry = kAbsent;  ///< 3.11: bool, this frame was entered from C
        Offset tlbc_index =
            kAbsent;  ///< free-threaded 3.14+: which thread-local copy of the bytecode instr points into
    } frame;
    struct Code {  // PyCodeObject
        Offset size = kAbsent;
        Offset filename = kAbsent;
        Offset name = kAbsent;
        Offset qualname = kAbsent;   ///< 3.11+
        Offset linetable = kAbsent;  ///< bytes object: co_lnotab or co_linetable
        Offset firstlineno = kAbsent;
        Offset bytecode = kAbsent;  ///< 3.11+ co_code_adaptive: the instructions start there, in the object;
                                    ///< else pointer co_code
        Offset tlbc = kAbsent;      ///< free-threaded 3.14+: co_tlbc
    } code;
    struct Object {
        Offset type = kAbsent;  ///< ob_type
    } object;
    struct Bytes {
        Offset size = kAbsent;  ///< ob_size
        Offset data = kAbsent;  ///< ob_sval
    } bytes;
    struct Unicode {
        Offset state = kAbsent;
        Offset length = kAbsent;        ///< in code points
        Offset ascii_size = kAbsent;    ///< sizeof(PyASCIIObject): where ASCII data starts
        Offset compact_size = kAbsent;  ///< sizeof(PyCompactUnicodeObject): where other compact data starts
    } unicode;
    struct Type {
        Offset name = kAbsent;  ///< tp_name
    } type;
    struct Gc {
        Offset interpreter_gc = kAbsent;  ///< 3.9+: of struct _gc_runtime_state in PyInterpreterState
        Offset collecting = kAbsent;
    } gc;

    InstrKind instr_kind = InstrKind::lasti_bytes;
    LineTableKind line_table_kind = LineTableKind::lnotab;
    RunningKind running_kind = RunningKind::unknown;
    /// Where that word lies, from the start of frame.instr on.
    Offset running_after_instr = kAbsent;
    /// Values of `owner`: which frames are the interpreter's own trampolines and not anybody's code. kAbsent:
    /// none such.
    std::uint32_t owner_generator = kAbsent;
    std::uint32_t owner_shim =
        kAbsent;  ///< 3.12, 3.13 FRAME_OWNED_BY_CSTACK; 3.14+ FRAME_OWNED_BY_INTERPRETER
    std::uint32_t owner_cstack = kAbsent;
    /// Bits of a stackref that aren't part of the pointer (3.14+), else 0.
    std::uint64_t stackref_tag_mask = 0;
    /// 3.13+: a thread that runs a subinterpreter's code has a thread state of its own there. Before, it ran
    /// on the one that was made with the interpreter, which says that it is its creator's.
    bool runners_own_state = false;
};

enum class LayoutSource : std::uint8_t { debug_offsets, dwarf, dwarf_cache, built_in };

/// A CPython runtime found in a process, and how to read it.
struct Runtime {
    Version version;
    bool free_threaded = false;
    base::Address address;    ///< of _PyRuntime
    std::string module_path;  ///< the file that holds the interpreter, as the target sees it
    std::string build_id;     ///< hex; empty where the file has none
    /// Where the interpreter's own machine code lies (executable mappings of that module): an instruction
    /// pointer in there is "Python" time, elsewhere in user space "native".
    base::Address text_start;
    base::Address text_end;
    Layout layout;
    LayoutSource layout_source = LayoutSource::built_in;
    std::string found_by;  ///< for `doctor`: "symbol _PyRuntime in .dynsym of /usr/bin/python3.11"
    /// What the user must know: "Python 3.16 is newer than this memattach: …".
    std::vector<std::string> notes;
};

}  // namespace memattach::python
