#include <fmt/format.h>

#include <array>

#include "memattach/base/bytes.h"
#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

namespace memattach::python {
namespace {

constexpr std::string_view kCookie = "xdebugpy";
/// Real ones stay below: _PyRuntimeState, which embeds the first interpreter, has 600 KB in 3.14.
constexpr std::uint64_t kMaxOffset = 64 << 20;

/// The words of struct _Py_DebugOffsets that are of use, by their position in it. It is a plain sequence of
/// 64-bit words after the cookie, whose order is fixed within a minor version only: 3.13 has it in
/// Include/internal/pycore_runtime.h, 3.14 and later in pycore_debug_offsets.h. 0: that version hasn't got
/// it.
struct Shape {
    int minor;
    struct {
        int size, finalizing, interpreters_head;
    } runtime;
    struct {
        int size, id, next, threads_head, gc, ceval_gil, gil, gil_enabled, gil_locked, gil_holder;
    } interpreter;
    struct {
        int size, prev, next, interp, frame, thread_id, native_thread_id, datastack_chunk, status;
    } thread;
    struct {
        int size, previous, code, instr, localsplus, owner, tlbc_index;
    } frame;
    struct {
        int size, filename, name, qualname, linetable, firstlineno, bytecode, tlbc;
    } code;
    struct {
        int size, type;
    } object;
    struct {
        int size, name;
    } type;
    struct {
        int size, bytes, data;
    } bytes;
    struct {
        int size, state, length, ascii_size, compact_size;
    } unicode;
    struct {
        int size, collecting;
    } gc;
};

// Words 0 to 2 are the cookie, the version and the free-threaded flag in every one.
// clang-format off
constexpr std::array kShapes = {
    Shape{13,
          {3, 4, 5},
          {6, 7, 8, 9, 10, 14, 15, 16, 17, 18},
          {19, 20, 21, 22, 23, 24, 25, 26, 27},
          {28, 29, 30, 31, 32, 33, 0},
          {34, 35, 36, 37, 38, 39, 43, 0},
          {44, 45}, {46, 47},
          {64, 65, 66}, {67, 68, 69, 70, 0}, {71, 72}},
    Shape{14,
          {3, 4, 5},
          {6, 7, 8, 9, 11, 15, 16, 17, 18, 19},
          {22, 23, 24, 25, 26, 27, 28, 29, 30},
          {31, 32, 33, 34, 35, 36, 38},
          {39, 40, 41, 42, 43, 44, 48, 49},
          {50, 51}, {52, 53},
          {74, 75, 76}, {77, 78, 79, 80, 0}, {81, 82}},
    Shape{15,
          {3, 4, 5},
          {6, 7, 8, 9, 11, 15, 16, 17, 18, 19},
          {22, 23, 24, 25, 26, 30, 31, 32, 33},
          {39, 40, 41, 42, 43, 44, 46},
          {47, 48, 49, 50, 51, 52, 56, 57},
          {58, 59}, {60, 61},
          {86, 87, 88}, {89, 90, 91, 92, 93}, {94, 95}},
};
// clang-format on

class Words {
  public:
    explicit Words(std::span<const std::byte> bytes) : bytes_(bytes) {}
    [[nodiscard]] std::optional<std::uint64_t> at(int index) const {
        return base::read_at<std::uint64_t>(bytes_, static_cast<std::uint64_t>(index) * 8);
    }
    /// Word `index` as an offset; kAbsent where the shape hasn't got it, and noted where it makes no sense.
    Offset offset(int index) {
        if (index == 0) return kAbsent;
        const auto word = at(index);
        if (!word || *word > kMaxOffset) {
            if (bad_word < 0) bad_word = index;
            return kAbsent;
        }
        return static_cast<Offset>(*word);
    }
    int bad_word = -1;

  private:
    std::span<const std::byte> bytes_;
};

}  // namespace

Version version_from_hex(std::uint32_t hex) {
    return {static_cast<int>(hex >> 24), static_cast<int>(hex >> 16 & 0xFF),
            static_cast<int>(hex >> 8 & 0xFF), hex};
}

std::string newest_known_version() {
    return fmt::format("3.{}", kShapes.back().minor);
}

std::optional<DebugOffsets> parse_debug_offsets(std::span<const std::byte> bytes, std::string& why) {
    if (bytes.size() < kCookie.size() || std::memcmp(bytes.data(), kCookie.data(), kCookie.size()) != 0) {
        why = "_PyRuntime carries no debug offsets";
        return std::nullopt;
    }
    Words words(bytes);
    const auto hex = words.at(1);
    const auto free_threaded = words.at(2);
    if (!hex || *hex > UINT32_MAX || !free_threaded || *free_threaded > 1) {
        why = "its debug offsets are damaged";
        return std::nullopt;
    }
    DebugOffsets found;
    found.version = version_from_hex(static_cast<std::uint32_t>(*hex));
    found.free_threaded = *free_threaded == 1;
    if (found.version.major != 3 || found.version.minor < kShapes.front().minor) {
        why = fmt::format("its debug offsets claim to be of Python {}.{}", found.version.major,
                          found.version.minor);
        return std::nullopt;
    }
    const Shape* shape = &kShapes.back();
    for (const Shape& candidate : kShapes)
        if (candidate.minor == found.version.minor) shape = &candidate;
    found.known_shape = shape->minor == found.version.minor;

    Layout& to = found.layout;
    const auto take = [&](Offset& offset, int index) { offset = words.offset(index); };
    take(to.runtime.size, shape->runtime.size);
    take(to.runtime.finalizing, shape->runtime.finalizing);
    take(to.runtime.interpreters_head, shape->runtime.interpreters_head);
    take(to.interpreter.size, shape->interpreter.size);
    take(to.interpreter.id, shape->interpreter.id);
    take(to.interpreter.next, shape->interpreter.next);
    take(to.interpreter.threads_head, shape->interpreter.threads_head);
    take(to.gc.interpreter_gc, shape->interpreter.gc);
    take(to.interpreter.ceval_gil, shape->interpreter.ceval_gil);
    // The words for the GIL give the places of the main interpreter's own `_gil` within the interpreter
    // state; through the pointer ceval.gil it is the same structure wherever it lies.
    const Offset gil = words.offset(shape->interpreter.gil);
    const Offset holder = words.offset(shape->interpreter.gil_holder);
    const Offset locked = words.offset(shape->interpreter.gil_locked);
    if (gil != kAbsent && holder != kAbsent && locked != kAbsent && holder >= gil && locked >= gil) {
        to.gil.last_holder = holder - gil;
        to.gil.locked = locked - gil;
        if (found.free_threaded) {
            const Offset enabled = words.offset(shape->interpreter.gil_enabled);
            if (enabled != kAbsent) to.interpreter.gil_enabled = gil + enabled;
        }
    }
    take(to.thread.size, shape->thread.size);
    take(to.thread.prev, shape->thread.prev);
    take(to.thread.next, shape->thread.next);
    take(to.thread.interp, shape->thread.interp);
    take(to.thread.frame, shape->thread.frame);
    take(to.thread.thread_id, shape->thread.thread_id);
    take(to.thread.native_thread_id, shape->thread.native_thread_id);
    take(to.thread.datastack_chunk, shape->thread.datastack_chunk);
    take(to.thread.status, shape->thread.status);
    take(to.frame.size, shape->frame.size);
    take(to.frame.previous, shape->frame.previous);
    take(to.frame.code, shape->frame.code);
    take(to.frame.instr, shape->frame.instr);
    take(to.frame.localsplus, shape->frame.localsplus);
    take(to.frame.owner, shape->frame.owner);
    take(to.code.size, shape->code.size);
    take(to.code.filename, shape->code.filename);
    take(to.code.name, shape->code.name);
    take(to.code.qualname, shape->code.qualname);
    take(to.code.linetable, shape->code.linetable);
    take(to.code.firstlineno, shape->code.firstlineno);
    take(to.code.bytecode, shape->code.bytecode);
    if (found.free_threaded) {  // 0 in the others
        take(to.frame.tlbc_index, shape->frame.tlbc_index);
        take(to.code.tlbc, shape->code.tlbc);
    }
    take(to.object.type, shape->object.type);
    take(to.type.name, shape->type.name);
    take(to.bytes.size, shape->bytes.bytes);
    take(to.bytes.data, shape->bytes.data);
    take(to.unicode.state, shape->unicode.state);
    take(to.unicode.length, shape->unicode.length);
    take(to.unicode.ascii_size, shape->unicode.ascii_size);
    take(to.unicode.compact_size, shape->unicode.compact_size);
    // Before 3.15 this isn't in there. PyCompactUnicodeObject adds utf8_length and utf8 to PyASCIIObject, in
    // every version so far.
    if (shape->unicode.compact_size == 0 && to.unicode.ascii_size != kAbsent)
        to.unicode.compact_size = to.unicode.ascii_size + 16;
    take(to.gc.collecting, shape->gc.collecting);

    if (words.bad_word >= 0) {
        why = fmt::format("word {} of its debug offsets makes no sense", words.bad_word);
        return std::nullopt;
    }
    apply_version(found.version, to);
    if (!is_plausible(to, why)) {
        why = "its debug offsets give no good " + why;
        return std::nullopt;
    }
    return found;
}

}  // namespace memattach::python
