#pragma once

#include <functional>
#include <string_view>

#include "memattach/python/layout.h"
#include "process/fake_memory.h"

namespace memattach::test {

/// Which of the ways that CPython has kept its frames in.
enum class FrameStyle {
    heap,    ///< 3.8–3.10: frame objects, offsets of instructions, a flag while running
    cframe,  ///< 3.11: a _PyCFrame names the innermost frame, is_entry, prev_instr
    shims,   ///< 3.12, 3.13: trampoline frames, instr_ptr
    tagged,  ///< 3.14+: tags in the code pointer, which is cleared when the frame is left; copies of the
             ///< bytecode
};

/// Memory whose contents change under the reader: `on_read` runs before each piece, with the number of pieces
/// so far.
class ChangingMemory final : public process::Memory {
  public:
    [[nodiscard]] std::size_t read_up_to(base::Address from, std::span<std::byte> out) const override {
        if (on_read) on_read(reads, from);
        ++reads;
        return fake.read_up_to(from, out);
    }

    mutable FakeMemory fake;
    mutable std::size_t reads = 0;
    std::function<void(std::size_t, base::Address)> on_read;
};

/// A CPython runtime made of bytes: one interpreter, one thread, frames and code objects to be put where a
/// test wants them. Every structure ends where its region of memory ends.
class FakeInterpreter {
  public:
    static constexpr base::Address kRuntime{0x10000};
    static constexpr base::Address kInterpreter{0x20000};
    static constexpr base::Address kThread{0x30000};
    static constexpr base::Address kCFrame{0x40000};
    static constexpr base::Address kGil{0x50000};
    static constexpr base::Address kCodeType{0x60000};
    static constexpr base::Address kFrames{0x7f00'0000'0000};
    static constexpr std::uint64_t kFrameBytes = 128;

    explicit FakeInterpreter(FrameStyle style_in) : style(style_in) {
        auto& l = runtime.layout;
        runtime.address = kRuntime;
        runtime.version = {3, 0, 0, 0x030000F0};
        l.runtime.size = 64;
        l.runtime.interpreters_head = 0;
        l.runtime.finalizing = 8;
        l.interpreter = {.size = 64, .id = 0, .next = 8, .threads_head = 16};
        l.thread.size = 128;
        l.thread.prev = 0;
        l.thread.next = 8;
        l.thread.interp = 16;
        l.thread.thread_id = 48;
        l.frame.size = kFrameBytes;
        l.frame.previous = 8;
        l.frame.code = 0;
        l.frame.instr = 56;
        l.code.size = 160;
        l.code.filename = 32;
        l.code.name = 40;
        l.code.linetable = 56;
        l.code.firstlineno = 64;
        l.code.bytecode = 128;
        l.object.type = 8;
        l.bytes = {.size = 16, .data = 32};
        l.unicode = {.state = 32, .length = 16, .ascii_size = 40, .compact_size = 56};
        l.type.name = 24;
        l.line_table_kind = python::LineTableKind::locations;
        map_all();
        if (style == FrameStyle::heap) {
            l.runtime.tstate_current = 16;
            l.thread.frame = 24;
            l.instr_kind = python::InstrKind::lasti_units;
            l.running_kind = python::RunningKind::state_zero;
            l.running_after_instr = 4;
            l.line_table_kind = python::LineTableKind::linetable_310;
        } else {
            l.thread.native_thread_id = 56;
            l.code.qualname = 48;
            l.frame.owner = 70;
            l.owner_generator = 1;
            l.instr_kind = style == FrameStyle::cframe ? python::InstrKind::prev_instr_ptr
                                                       : python::InstrKind::instr_ptr;
        }
        if (style == FrameStyle::cframe) {
            l.runtime.tstate_current = 16;
            l.thread.cframe = 24;
            l.cframe = {.current_frame = 8, .previous = 16};
            l.frame.is_entry = 69;
            l.running_kind = python::RunningKind::stack_top;
            l.running_after_instr = 8;
            memory.fake.write(kThread + 24, kCFrame.value());
        }
        if (style == FrameStyle::shims || style == FrameStyle::tagged) {
            l.thread.frame = 24;
            l.owner_shim = 3;
            l.interpreter.ceval_gil = 24;
            l.gil = {.last_holder = 8, .locked = 16};
            memory.fake.write(kInterpreter + 24, kGil.value());
            l.running_kind = style == FrameStyle::shims ? python::RunningKind::stack_top
                                                        : python::RunningKind::code_cleared;
            if (style == FrameStyle::shims) l.running_after_instr = 8;
        }
        if (style == FrameStyle::tagged) {
            l.stackref_tag_mask = 3;
            l.frame.tlbc_index = 72;
            l.code.tlbc = 96;
        }
        memory.fake.write(kRuntime, kInterpreter.value());
        memory.fake.write(kInterpreter + 16, kThread.value());
        memory.fake.write(kThread + 16, kInterpreter.value());
        memory.fake.write(kThread + 48, std::uint64_t{0x7777});
        memory.fake.write(kThread + 56, std::uint64_t{4242});
        memory.fake.write(kCodeType + 24, add_bytes("code").value());
    }

    /// Raw bytes with a NUL at the end, as a region of their own.
    base::Address add_bytes(std::string_view text) {
        std::vector<std::byte> bytes(text.size() + 1);
        std::memcpy(bytes.data(), text.data(), text.size());
        const base::Address at = next_object();
        memory.fake.map(at, std::move(bytes));
        return at;
    }

    /// A compact str. `claimed_length` overrides what it says of itself.
    template <typename Char>
    base::Address add_text(std::basic_string_view<Char> text, std::uint64_t claimed_length = ~0ULL,
                           bool ascii = true) {
        const std::size_t head = ascii ? 40 : 56;
        std::vector<std::byte> bytes(head + text.size() * sizeof(Char));
        const std::uint64_t length = claimed_length == ~0ULL ? text.size() : claimed_length;
        const std::uint32_t state = (sizeof(Char) << 2U) | (1U << 5U) | (ascii ? 1U << 6U : 0U);
        std::memcpy(bytes.data() + 16, &length, 8);
        std::memcpy(bytes.data() + 32, &state, 4);
        std::memcpy(bytes.data() + head, text.data(), text.size() * sizeof(Char));
        const base::Address at = next_object();
        memory.fake.map(at, std::move(bytes));
        return at;
    }
    base::Address add_text(const char* text) { return add_text(std::string_view(text)); }

    /// A code object whose instruction at byte offset 2·n is on line `first_line` + n, for n < 16.
    base::Address add_code(base::Address name, base::Address filename, std::int32_t first_line) {
        const base::Address at = next_object();
        memory.fake.map_zeros(at, 160);
        fill_code(at, name, filename, first_line);
        return at;
    }
    base::Address add_code(const char* name, std::int32_t first_line = 10) {
        return add_code(add_text(name), add_text("/srv/app.py"), first_line);
    }
    void fill_code(base::Address at, base::Address name, base::Address filename, std::int32_t first_line) {
        auto& fake = memory.fake;
        fake.write(at + 8, kCodeType.value());
        fake.write(at + 16, std::int64_t{16});
        fake.write(at + 32, filename.value());
        fake.write(at + 40, name.value());
        fake.write(at + 48, name.value());
        fake.write(at + 56, line_table().value());
        fake.write(at + 64, first_line);
    }

    /// Bytes of a line table, in the style's own format, one line an instruction.
    base::Address line_table() {
        std::vector<std::byte> table;
        for (int i = 0; i < 16; ++i) {
            if (style == FrameStyle::heap) {
                table.push_back(std::byte{2});
                table.push_back(std::byte(i == 0 ? 0 : 1));
            } else {
                table.push_back(std::byte{0x80U | (13U << 3U)});
                table.push_back(std::byte(i == 0 ? 0 : 2));
            }
        }
        return add_bytes_object(table, table.size());
    }
    base::Address add_bytes_object(const std::vector<std::byte>& content, std::uint64_t claimed_size) {
        std::vector<std::byte> bytes(32 + content.size());
        std::memcpy(bytes.data() + 16, &claimed_size, 8);
        if (!content.empty()) std::memcpy(bytes.data() + 32, content.data(), content.size());
        const base::Address at = next_object();
        memory.fake.map(at, std::move(bytes));
        return at;
    }

    static base::Address frame_at(std::uint64_t slot) { return kFrames + slot * kFrameBytes; }

    struct FrameIs {
        bool running = true;  ///< on a stack (heap, tagged), or the innermost of its loop (cframe, shims)
        bool entry = false;   ///< cframe
        bool generator = false;
        std::int32_t copy = 0;  ///< tagged: tlbc_index
        std::uint64_t bytecode = 0;
    };
    /// Puts a frame into `slot`, executing the instruction at byte `offset` of `code`.
    base::Address put_frame(std::uint64_t slot, base::Address code, std::int32_t offset,
                            base::Address previous, const FrameIs& is) {
        auto& fake = memory.fake;
        const base::Address at = frame_at(slot);
        const bool cleared = style == FrameStyle::tagged && !is.running;
        fake.write(at, cleared ? 0 : code.value() | (style == FrameStyle::tagged ? 1U : 0U));
        fake.write(at + 8, previous.value());
        if (style == FrameStyle::heap) {
            fake.write(at + 56, offset < 0 ? offset : offset / 2);
            fake.write(at + 48, std::uint64_t{is.generator});
            fake.write(at + 60, std::int8_t(is.running ? 0 : 1));
            return at;
        }
        const std::uint64_t bytecode = is.bytecode != 0 ? is.bytecode : code.value() + 128;
        fake.write(at + 56, bytecode + static_cast<std::uint64_t>(std::int64_t{offset}));
        fake.write(at + 64, std::int32_t(is.running ? -1 : 3));
        if (style == FrameStyle::cframe) {
            fake.write(at + 69, std::int8_t(is.entry));
        }
        fake.write(at + 70, std::int8_t(is.generator));
        fake.write(at + 72, is.copy);
        return at;
    }
    base::Address put_frame(std::uint64_t slot, base::Address code, std::int32_t offset,
                            base::Address previous) {
        return put_frame(slot, code, offset, previous, FrameIs{});
    }
    base::Address put_shim(std::uint64_t slot, base::Address previous) {
        const base::Address at = frame_at(slot);
        memory.fake.write(at, std::uint64_t{0x1234'5678});
        memory.fake.write(at + 8, previous.value());
        memory.fake.write(at + 70, std::int8_t(3));
        return at;
    }
    void set_current(base::Address frame) {
        memory.fake.write(style == FrameStyle::cframe ? kCFrame + 8 : kThread + 24, frame.value());
    }

    FrameStyle style;
    ChangingMemory memory;
    python::Runtime runtime;

  private:
    void map_all() {
        auto& fake = memory.fake;
        for (const auto& [at, bytes] : {std::pair{kRuntime, 64},
                                        {kInterpreter, 64},
                                        {kThread, 128},
                                        {kCFrame, 24},
                                        {kGil, 24},
                                        {kCodeType, 32}}) {
            fake.map_zeros(at, static_cast<std::size_t>(bytes));
        }
        fake.map_zeros(kFrames, 2048 * kFrameBytes);
    }
    base::Address next_object() { return base::Address(0x1'0000'0000 + 0x10000 * ++objects_); }

    std::uint64_t objects_ = 0;
};

}  // namespace memattach::test
