#include "memattach/probe/emulate.h"

namespace memattach::probe {
namespace {

constexpr std::byte kInt3{0xCC};
constexpr std::uint8_t kArgumentRegisters[] = {7, 6, 2, 1, 8, 9};  // rdi, rsi, rdx, rcx, r8, r9
constexpr std::uint8_t kRsp = 4;
constexpr std::uint8_t kRdi = 7;
constexpr std::uint8_t kCondEqual = 4;

bool is_register(const Operand& operand, std::uint8_t number) {
    return operand.kind == Operand::Kind::reg && operand.reg == number;
}

bool keeps_arguments(const Instruction& instruction) {
    for (const std::uint8_t number : kArgumentRegisters) {
        if (instruction.writes_register(number)) return false;
    }
    return true;
}

bool tests_first_argument(const Instruction& in) {
    return in.op == Op::test && in.size_bytes == 8 && is_register(in.dst, kRdi) && is_register(in.src, kRdi);
}

bool is_in_registers(const Operand& operand) {
    return operand.kind == Operand::Kind::reg || operand.kind == Operand::Kind::imm;
}

bool makes_room(const Instruction& in) {
    return in.op == Op::sub && is_register(in.dst, kRsp) && in.src.kind == Operand::Kind::imm &&
           in.src.value >= 0;
}

/// Carrying out a push costs one more system call than anything that stays in registers, and behind the first
/// byte of an instruction that has several only an int3 can bring a thread. So where `entry` begins with
/// pushes, the breakpoint goes to what comes next, if that is of this kind and the frame isn't complete
/// there: nothing in the function jumps to a place where the stack is as it is half way into its prologue.
/// Flags are dead all along. `first_alone`: the function has one argument.
std::optional<ProbePoint> behind_pushes(std::span<const std::byte> entry, bool first_alone) {
    std::uint32_t offset = 0;
    std::uint32_t stack_bytes = 0;
    std::optional<ProbePoint> point;
    for (int i = 0; i < 16 && offset < entry.size(); ++i) {
        const auto in = decode(entry.subspan(offset));
        if (!in || in->is_branch()) return std::nullopt;
        const bool grows = in->op == Op::push || makes_room(*in);
        if (point && grows) return point;
        const bool simple = (in->op == Op::mov || in->op == Op::lea || makes_room(*in)) && in->length > 1 &&
                            in->dst.kind == Operand::Kind::reg &&
                            (in->op == Op::lea || is_in_registers(in->src)) &&
                            (first_alone ? !in->writes_register(kRdi) : keeps_arguments(*in));
        if (!point && in->op != Op::push) {
            if (!simple || offset == 0) return std::nullopt;
            point = ProbePoint{offset, stack_bytes, in, entry[offset]};
            if (grows) return point;
        }
        if (in->op == Op::push) {
            stack_bytes += 8;
        } else if (in->writes_register(kRsp)) {
            return std::nullopt;
        }
        offset += in->length;
    }
    return std::nullopt;
}

/// Behind `test rdi,rdi; je` where the entry consists of that (and what comes before it) alone.
std::optional<ProbePoint> behind_null_check(std::span<const std::byte> entry) {
    std::uint32_t offset = 0;
    std::uint32_t stack_bytes = 0;
    bool tested = false;
    for (int i = 0; i < 8 && offset < entry.size(); ++i) {
        const auto in = decode(entry.subspan(offset));
        if (!in) return std::nullopt;
        if (tested && in->op == Op::jcc && in->condition == kCondEqual) {
            const auto target =
                decode(entry.subspan(std::min<std::size_t>(offset + in->length, entry.size())));
            if (!target || target->is_branch()) return std::nullopt;
            offset += in->length;
            return ProbePoint{offset, stack_bytes, target, entry[offset]};
        }
        if (in->is_branch() || !keeps_arguments(*in)) return std::nullopt;
        if (in->op == Op::push) {
            stack_bytes += 8;
        } else if (makes_room(*in)) {
            stack_bytes += static_cast<std::uint32_t>(in->src.value);
        } else if (in->writes_register(kRsp)) {
            return std::nullopt;
        }
        if (tests_first_argument(*in)) {
            tested = true;
        } else if (tested && in->op != Op::nop && in->op != Op::mov && in->op != Op::lea &&
                   in->op != Op::push) {
            return std::nullopt;  // flags may have changed
        }
        offset += in->length;
    }
    return std::nullopt;
}

}  // namespace

std::optional<ProbePoint> choose_probe_point(std::span<const std::byte> entry, bool skip_null_argument) {
    if (entry.empty() || entry[0] == kInt3) return std::nullopt;
    ProbePoint start{0, 0, decode(entry), entry[0]};
    if (skip_null_argument) {
        const auto point = behind_null_check(entry);
        if (point && point->original != kInt3) start = *point;
    }
    if (auto point = behind_pushes(entry.subspan(start.offset), skip_null_argument);
        point && point->original != kInt3) {
        point->offset += start.offset;
        point->return_slot_bytes += start.return_slot_bytes;
        return point;
    }
    // The entry's own first instruction is reached by calls only, so it is the place to be wherever it can be
    // emulated; the encodings that can't (vector moves, locked operations, system calls) would have to be
    // decoded to find out where the next instruction starts, so those are single-stepped.
    return start;
}

}  // namespace memattach::probe
