#include <fmt/format.h>

#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

namespace memattach::python {
namespace {

/// What no offset tells. One row a minor version; later ones are taken to be like the newest.
/// What follows the instruction in a frame: f_lineno, f_iblock, then f_executing or f_state (3.8–3.10,
/// frameobject.h); stacktop (3.11–3.13, pycore_frame.h). 3.14+ clear f_executable in clear_thread_frame
/// (Python/ceval.c). enum _frameowner: 3.11–3.13 Include/internal/pycore_frame.h, 3.14+
/// pycore_interpframe_structs.h. Stackref tags: Include/internal/pycore_stackref.h, Py_TAG_BITS, at most 3 in
/// every build.
struct VersionRow {
    int minor;
    InstrKind instr_kind;
    LineTableKind line_table_kind;
    std::uint32_t owner_generator, owner_shim, owner_cstack;
    std::uint32_t stackref_tag_mask;
    RunningKind running_kind;
    Offset running_after_instr;
    bool runners_own_state;
};

constexpr VersionRow kRows[] = {
    {8, InstrKind::lasti_bytes, LineTableKind::lnotab, kAbsent, kAbsent, kAbsent, 0,
     RunningKind::executing_flag, 12, false},
    {9, InstrKind::lasti_bytes, LineTableKind::lnotab, kAbsent, kAbsent, kAbsent, 0,
     RunningKind::executing_flag, 12, false},
    {10, InstrKind::lasti_units, LineTableKind::linetable_310, kAbsent, kAbsent, kAbsent, 0,
     RunningKind::state_zero, 12, false},
    {11, InstrKind::prev_instr_ptr, LineTableKind::locations, 1, kAbsent, kAbsent, 0, RunningKind::stack_top,
     8, false},
    {12, InstrKind::prev_instr_ptr, LineTableKind::locations, 1, 3, kAbsent, 0, RunningKind::stack_top, 8,
     false},
    {13, InstrKind::instr_ptr, LineTableKind::locations, 1, 3, kAbsent, 0, RunningKind::stack_top, 8, true},
    {14, InstrKind::instr_ptr, LineTableKind::locations, 1, 3, 4, 3, RunningKind::code_cleared, kAbsent,
     true},
    {15, InstrKind::instr_ptr, LineTableKind::locations, 1, 3, kAbsent, 3, RunningKind::code_cleared, kAbsent,
     true},
};

/// Upper bounds for structures; real ones stay below a quarter of them.
struct SizeBound {
    Offset& (*of)(Layout&);
    std::string_view name;
    Offset max_bytes;
};
constexpr SizeBound kSizeBounds[] = {
    {[](Layout& l) -> Offset& { return l.runtime.size; }, "size of the runtime state", 16 << 20},
    {[](Layout& l) -> Offset& { return l.interpreter.size; }, "size of the interpreter state", 16 << 20},
    {[](Layout& l) -> Offset& { return l.thread.size; }, "size of the thread state", 64 << 10},
    {[](Layout& l) -> Offset& { return l.frame.size; }, "size of the frame", 2048},
    {[](Layout& l) -> Offset& { return l.code.size; }, "size of the code object", 2048},
    {[](Layout& l) -> Offset& { return l.unicode.ascii_size; }, "size of the ASCII string", 256},
};
/// For what has no bounding size.
constexpr Offset kMaxLooseOffset = 4096;

}  // namespace

void apply_version(const Version& version, Layout& layout) {
    const VersionRow* row = &kRows[0];
    for (const VersionRow& candidate : kRows)
        if (candidate.minor <= version.minor) row = &candidate;
    layout.instr_kind = row->instr_kind;
    layout.line_table_kind = row->line_table_kind;
    layout.running_kind = row->running_kind;
    layout.running_after_instr = row->running_after_instr;
    layout.owner_generator = row->owner_generator;
    layout.owner_shim = row->owner_shim;
    layout.owner_cstack = row->owner_cstack;
    layout.stackref_tag_mask = row->stackref_tag_mask;
    layout.runners_own_state = row->runners_own_state;
}

bool is_plausible(const Layout& layout, std::string& why) {
    Layout& l = const_cast<Layout&>(layout);  // for the accessors, which only form references
    for (const SizeBound& bound : kSizeBounds) {
        const Offset size = bound.of(l);
        if (size == kAbsent || size == 0 || size > bound.max_bytes) {
            why = bound.name;
            return false;
        }
    }
    for (const LayoutField& field : layout_fields()) {
        const Offset offset = field.of(l);
        if (offset == kAbsent) continue;
        const Offset limit = field.bound != nullptr ? field.bound(l) : kAbsent;
        const bool is_size = field.c_names[0].find('.') == std::string_view::npos;
        if (limit != kAbsent ? offset >= limit : !is_size && offset > kMaxLooseOffset) {
            why = field.name;
            return false;
        }
    }
    const bool has_frames = layout.thread.frame != kAbsent ||
                            (layout.thread.cframe != kAbsent && layout.cframe.current_frame != kAbsent);
    if (!has_frames) {
        why = "thread.frame";
        return false;
    }
    const std::pair<Offset, std::string_view> needed[] = {
        {layout.runtime.interpreters_head, "runtime.interpreters_head"},
        {layout.interpreter.next, "interpreter.next"},
        {layout.interpreter.threads_head, "interpreter.threads_head"},
        {layout.thread.next, "thread.next"},
        {layout.thread.interp, "thread.interp"},
        {layout.thread.thread_id, "thread.thread_id"},
        {layout.frame.previous, "frame.previous"},
        {layout.frame.code, "frame.code"},
        {layout.frame.instr, "frame.instr"},
        {layout.code.filename, "code.filename"},
        {layout.code.name, "code.name"},
        {layout.code.linetable, "code.linetable"},
        {layout.code.firstlineno, "code.firstlineno"},
        {layout.code.bytecode, "code.bytecode"},
        {layout.object.type, "object.type"},
        {layout.bytes.size, "bytes.size"},
        {layout.bytes.data, "bytes.data"},
        {layout.unicode.state, "unicode.state"},
        {layout.unicode.length, "unicode.length"},
        {layout.unicode.compact_size, "unicode.compact_size"},
        {layout.type.name, "type.name"},
    };
    for (const auto& [offset, name] : needed) {
        if (offset != kAbsent) continue;
        why = name;
        return false;
    }
    return true;
}

}  // namespace memattach::python
