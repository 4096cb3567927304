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
        } else if (in->op == Op::sub && is_register(in->dst, kRsp) && in->src.kind == Operand::Kind::imm &&
                   in->src.value >= 0) {
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
    if (skip_null_argument) {
        const auto point = behind_null_check(entry);
        if (point && point->original != kInt3) return point;
    }
    // The entry's own first instruction is reached by calls only, so it is the place to be wherever it can be
    // emulated; the encodings that can't (vector moves, locked operations, system calls) would have to be
    // decoded to find out where the next instruction starts, so those are single-stepped.
    return ProbePoint{0, 0, decode(entry), entry[0]};
}

}  // namespace memattach::probe
