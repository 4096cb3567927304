#pragma once

#include <cstdint>
#include <optional>

#include "memattach/probe/emulate.h"

namespace memattach::probe {

/// Where an instruction's operands are encoded; the names follow the processor manuals' operand encodings.
enum class Form : std::uint8_t {
    none,
    rm_r,       ///< ModRM: destination r/m, source reg
    r_rm,       ///< destination reg, source r/m
    r_m,        ///< the same, memory only (lea)
    rm,         ///< one operand, r/m
    src_rm,     ///< one operand, r/m, read only (push, jmp, call)
    rm_imm8,    ///< r/m and a sign-extended byte
    rm_imm,     ///< r/m and a constant of the operation's size, at most 4 bytes, sign-extended
    rm_one,     ///< r/m and the constant 1 (shifts)
    rm_cl,      ///< r/m and cl (shifts)
    r_rm_imm8,  ///< imul
    r_rm_imm,
    acc_imm,  ///< al/eax/rax and a constant
    o,        ///< register in the opcode's low three bits
    o_imm,    ///< the same and a constant of the operation's full size (mov)
    imm8,     ///< a sign-extended byte
    imm32,
    imm16,  ///< ret
    rel8,
    rel32,
    hint,  ///< ModRM without an operand (no-ops)
};

enum class Width : std::uint8_t {
    byte,
    full,   ///< 2, 4 or 8 bytes by prefix
    stack,  ///< 8 bytes whatever the prefixes (push, pop, near branches)
};

enum class Source : std::uint8_t { same, byte, word, dword };

/// What an opcode, or a range of them, means.
struct OpcodeRow {
    std::uint8_t map;  ///< 0: one-byte opcodes, 1: those after 0f
    std::uint8_t first;
    std::uint8_t last;
    std::int8_t digit;  ///< ModRM.reg that extends the opcode; −1: none
    Op op;
    Form form;
    Width width = Width::full;
    Source source = Source::same;
};

/// `map`: 0 for one-byte opcodes, 1 for those after 0f; `digit`: what ModRM.reg would be, if there is one.
/// Nothing where the instruction isn't among those that are emulated.
std::optional<OpcodeRow> find_opcode(int map, std::uint8_t opcode, int digit);

}  // namespace memattach::probe
