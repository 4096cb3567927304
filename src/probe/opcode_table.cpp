#include "opcode_table.h"

#include <array>

namespace memattach::probe {
namespace {

/// Intel SDM volume 2, appendix A. Where a row names a range of opcodes, the low bits are a register or a
/// condition. The eight arithmetic operations (00–3f, 80–83) are generated below.
constexpr OpcodeRow kRows[] = {
    {0, 0x50, 0x57, -1, Op::push, Form::o, Width::stack},
    {0, 0x58, 0x5F, -1, Op::pop, Form::o, Width::stack},
    {0, 0x63, 0x63, -1, Op::movsx, Form::r_rm, Width::full, Source::dword},
    {0, 0x68, 0x68, -1, Op::push, Form::imm32, Width::stack},
    {0, 0x69, 0x69, -1, Op::imul, Form::r_rm_imm},
    {0, 0x6A, 0x6A, -1, Op::push, Form::imm8, Width::stack},
    {0, 0x6B, 0x6B, -1, Op::imul, Form::r_rm_imm8},
    {0, 0x70, 0x7F, -1, Op::jcc, Form::rel8, Width::stack},
    {0, 0x84, 0x84, -1, Op::test, Form::rm_r, Width::byte},
    {0, 0x85, 0x85, -1, Op::test, Form::rm_r},
    {0, 0x88, 0x88, -1, Op::mov, Form::rm_r, Width::byte},
    {0, 0x89, 0x89, -1, Op::mov, Form::rm_r},
    {0, 0x8A, 0x8A, -1, Op::mov, Form::r_rm, Width::byte},
    {0, 0x8B, 0x8B, -1, Op::mov, Form::r_rm},
    {0, 0x8D, 0x8D, -1, Op::lea, Form::r_m},
    {0, 0x90, 0x90, -1, Op::nop, Form::none},
    {0, 0x98, 0x98, -1, Op::sign_extend_acc, Form::none},
    {0, 0x99, 0x99, -1, Op::sign_extend_pair, Form::none},
    {0, 0xA8, 0xA8, -1, Op::test, Form::acc_imm, Width::byte},
    {0, 0xA9, 0xA9, -1, Op::test, Form::acc_imm},
    {0, 0xB0, 0xB7, -1, Op::mov, Form::o_imm, Width::byte},
    {0, 0xB8, 0xBF, -1, Op::mov, Form::o_imm},
    {0, 0xC0, 0xC0, 4, Op::shl, Form::rm_imm8, Width::byte},
    {0, 0xC0, 0xC0, 5, Op::shr, Form::rm_imm8, Width::byte},
    {0, 0xC0, 0xC0, 7, Op::sar, Form::rm_imm8, Width::byte},
    {0, 0xC1, 0xC1, 4, Op::shl, Form::rm_imm8},
    {0, 0xC1, 0xC1, 5, Op::shr, Form::rm_imm8},
    {0, 0xC1, 0xC1, 7, Op::sar, Form::rm_imm8},
    {0, 0xC2, 0xC2, -1, Op::ret, Form::imm16, Width::stack},
    {0, 0xC3, 0xC3, -1, Op::ret, Form::none, Width::stack},
    {0, 0xC6, 0xC6, 0, Op::mov, Form::rm_imm, Width::byte},
    {0, 0xC7, 0xC7, 0, Op::mov, Form::rm_imm},
    {0, 0xC9, 0xC9, -1, Op::leave, Form::none, Width::stack},
    {0, 0xD1, 0xD1, 4, Op::shl, Form::rm_one},
    {0, 0xD1, 0xD1, 5, Op::shr, Form::rm_one},
    {0, 0xD1, 0xD1, 7, Op::sar, Form::rm_one},
    {0, 0xD3, 0xD3, 4, Op::shl, Form::rm_cl},
    {0, 0xD3, 0xD3, 5, Op::shr, Form::rm_cl},
    {0, 0xD3, 0xD3, 7, Op::sar, Form::rm_cl},
    {0, 0xE8, 0xE8, -1, Op::call, Form::rel32, Width::stack},
    {0, 0xE9, 0xE9, -1, Op::jmp, Form::rel32, Width::stack},
    {0, 0xEB, 0xEB, -1, Op::jmp, Form::rel8, Width::stack},
    {0, 0xF6, 0xF6, 0, Op::test, Form::rm_imm, Width::byte},
    {0, 0xF6, 0xF6, 2, Op::not_, Form::rm, Width::byte},
    {0, 0xF6, 0xF6, 3, Op::neg, Form::rm, Width::byte},
    {0, 0xF7, 0xF7, 0, Op::test, Form::rm_imm},
    {0, 0xF7, 0xF7, 2, Op::not_, Form::rm},
    {0, 0xF7, 0xF7, 3, Op::neg, Form::rm},
    {0, 0xF7, 0xF7, 4, Op::mul, Form::src_rm},
    {0, 0xFE, 0xFE, 0, Op::inc, Form::rm, Width::byte},
    {0, 0xFE, 0xFE, 1, Op::dec, Form::rm, Width::byte},
    {0, 0xFF, 0xFF, 0, Op::inc, Form::rm},
    {0, 0xFF, 0xFF, 1, Op::dec, Form::rm},
    {0, 0xFF, 0xFF, 2, Op::call, Form::src_rm, Width::stack},
    {0, 0xFF, 0xFF, 4, Op::jmp, Form::src_rm, Width::stack},
    {0, 0xFF, 0xFF, 6, Op::push, Form::src_rm, Width::stack},
    {1, 0x0D, 0x0D, -1, Op::nop, Form::hint},
    {1, 0x18, 0x18, -1, Op::nop, Form::hint},
    {1, 0x1F, 0x1F, -1, Op::nop, Form::hint},
    {1, 0x40, 0x4F, -1, Op::cmov, Form::r_rm},
    {1, 0x80, 0x8F, -1, Op::jcc, Form::rel32, Width::stack},
    {1, 0x90, 0x9F, -1, Op::setcc, Form::rm, Width::byte},
    {1, 0xAF, 0xAF, -1, Op::imul, Form::r_rm},
    {1, 0xB6, 0xB6, -1, Op::movzx, Form::r_rm, Width::full, Source::byte},
    {1, 0xB7, 0xB7, -1, Op::movzx, Form::r_rm, Width::full, Source::word},
    {1, 0xBE, 0xBE, -1, Op::movsx, Form::r_rm, Width::full, Source::byte},
    {1, 0xBF, 0xBF, -1, Op::movsx, Form::r_rm, Width::full, Source::word},
};

Op arithmetic(int number) {
    return static_cast<Op>(static_cast<int>(Op::add) + number);
}

}  // namespace

std::optional<OpcodeRow> find_opcode(int map, std::uint8_t opcode, int digit) {
    if (map == 0 && opcode < 0x40 && (opcode & 7) < 6) {
        constexpr std::array<Form, 6> kForms = {Form::rm_r, Form::rm_r,    Form::r_rm,
                                                Form::r_rm, Form::acc_imm, Form::acc_imm};
        return OpcodeRow{0,
                         opcode,
                         opcode,
                         -1,
                         arithmetic(opcode >> 3),
                         kForms[opcode & 7],
                         (opcode & 1) != 0 ? Width::full : Width::byte};
    }
    if (map == 0 && (opcode == 0x80 || opcode == 0x81 || opcode == 0x83)) {
        return OpcodeRow{0,
                         opcode,
                         opcode,
                         static_cast<std::int8_t>(digit),
                         arithmetic(digit),
                         opcode == 0x81 ? Form::rm_imm : Form::rm_imm8,
                         opcode == 0x80 ? Width::byte : Width::full};
    }
    for (const OpcodeRow& row : kRows) {
        if (row.map == map && opcode >= row.first && opcode <= row.last &&
            (row.digit < 0 || row.digit == digit)) {
            return row;
        }
    }
    return std::nullopt;
}

}  // namespace memattach::probe
