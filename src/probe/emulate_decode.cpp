#include <algorithm>
#include <array>
#include <cstring>

#include "memattach/probe/emulate.h"

namespace memattach::probe {
namespace {

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

struct Row {
    std::uint8_t map;  ///< 0: one-byte opcodes, 1: those after 0f
    std::uint8_t first;
    std::uint8_t last;
    std::int8_t digit;  ///< ModRM.reg that extends the opcode; −1: none
    Op op;
    Form form;
    Width width = Width::full;
    Source source = Source::same;
};

constexpr std::uint32_t kCarry = 1U << 0;
constexpr std::uint32_t kAdjust = 1U << 4;
constexpr std::uint32_t kParity = 1U << 2;
constexpr std::uint32_t kZero = 1U << 6;
constexpr std::uint32_t kSign = 1U << 7;
constexpr std::uint32_t kOverflow = 1U << 11;

/// Intel SDM volume 2, appendix A. Where a row names a range of opcodes, the low bits are a register or a
/// condition. The eight arithmetic operations (00–3f, 80–83) are generated below.
constexpr Row kRows[] = {
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

std::optional<Row> find_row(int map, std::uint8_t opcode, int digit) {
    if (map == 0 && opcode < 0x40 && (opcode & 7) < 6) {
        constexpr std::array<Form, 6> kForms = {Form::rm_r, Form::rm_r,    Form::r_rm,
                                                Form::r_rm, Form::acc_imm, Form::acc_imm};
        return Row{0,
                   opcode,
                   opcode,
                   -1,
                   arithmetic(opcode >> 3),
                   kForms[opcode & 7],
                   (opcode & 1) != 0 ? Width::full : Width::byte};
    }
    if (map == 0 && (opcode == 0x80 || opcode == 0x81 || opcode == 0x83)) {
        return Row{0,
                   opcode,
                   opcode,
                   static_cast<std::int8_t>(digit),
                   arithmetic(digit),
                   opcode == 0x81 ? Form::rm_imm : Form::rm_imm8,
                   opcode == 0x80 ? Width::byte : Width::full};
    }
    for (const Row& row : kRows) {
        if (row.map == map && opcode >= row.first && opcode <= row.last &&
            (row.digit < 0 || row.digit == digit)) {
            return row;
        }
    }
    return std::nullopt;
}

struct Prefixes {
    bool operand_16 = false;
    bool rep = false;       // f3
    bool repne = false;     // f2: bnd before branches
    bool no_track = false;  // 3e
    bool rex = false;
    bool w = false, r = false, x = false, b = false;
    Operand::Segment segment = Operand::Segment::flat;
};

class Decoder {
  public:
    explicit Decoder(std::span<const std::byte> bytes)
        : bytes_(bytes.first(std::min<std::size_t>(bytes.size(), 15))) {}

    std::optional<Instruction> run() {
        if (!read_prefixes()) return std::nullopt;
        auto opcode = byte();
        if (!opcode) return std::nullopt;
        int map = 0;
        if (*opcode == 0x0F) {
            map = 1;
            opcode = byte();
            if (!opcode) return std::nullopt;
        }
        if (map == 1 && *opcode == 0x1E) return end_branch();
        const auto row = find_row(map, *opcode, peek_digit());
        if (!row || !prefixes_allowed(*row, *opcode)) return std::nullopt;
        Instruction out;
        out.op = row->op;
        out.condition = *opcode & 15;
        out.size_bytes = size_of(row->width);
        out.src_size_bytes = source_size(row->source, out.size_bytes);
        if (!operands(*row, *opcode, out)) return std::nullopt;
        out.undefined_flags = undefined_flags(out);
        out.length = static_cast<std::uint8_t>(at_);
        return out;
    }

  private:
    std::optional<std::uint8_t> byte() {
        if (at_ >= bytes_.size()) return std::nullopt;
        return std::to_integer<std::uint8_t>(bytes_[at_++]);
    }

    template <typename T>
    bool constant(std::int64_t& out) {
        if (bytes_.size() - at_ < sizeof(T)) return false;
        T value;
        std::memcpy(&value, bytes_.data() + at_, sizeof(T));
        at_ += sizeof(T);
        out = value;
        return true;
    }

    bool read_prefixes() {
        while (at_ < bytes_.size()) {
            const auto b = std::to_integer<std::uint8_t>(bytes_[at_]);
            if ((b & 0xF0) == 0x40) {  // REX comes last
                prefixes_.rex = true;
                prefixes_.w = (b & 8) != 0;
                prefixes_.r = (b & 4) != 0;
                prefixes_.x = (b & 2) != 0;
                prefixes_.b = (b & 1) != 0;
                ++at_;
                return true;
            }
            switch (b) {
                case 0x66:
                    prefixes_.operand_16 = true;
                    break;
                case 0xF3:
                    prefixes_.rep = true;
                    break;
                case 0xF2:
                    prefixes_.repne = true;
                    break;
                case 0x3E:
                    prefixes_.no_track = true;
                    break;
                case 0x26:
                case 0x2E:
                case 0x36:
                    break;  // these segments are flat in 64-bit mode
                case 0x64:
                    prefixes_.segment = Operand::Segment::fs;
                    break;
                case 0x65:
                    prefixes_.segment = Operand::Segment::gs;
                    break;
                default:
                    return true;
            }
            ++at_;
        }
        return false;
    }

    [[nodiscard]] int peek_digit() const {
        return at_ < bytes_.size() ? (std::to_integer<int>(bytes_[at_]) >> 3) & 7 : 0;
    }

    /// endbr64 and endbr32. Others in this space (rdssp) have effects where there is a shadow stack.
    std::optional<Instruction> end_branch() {
        const auto modrm = byte();
        if (!modrm || !prefixes_.rep || prefixes_.repne || prefixes_.rex || prefixes_.operand_16)
            return std::nullopt;
        if (*modrm != 0xFA && *modrm != 0xFB) return std::nullopt;
        Instruction out;
        out.length = static_cast<std::uint8_t>(at_);
        return out;
    }

    /// Repeat prefixes select other instructions in most places; only the places where they mean nothing are
    /// accepted. Operand-size prefixes on branches and stack operations change their width on some
    /// processors.
    [[nodiscard]] bool prefixes_allowed(const Row& row, std::uint8_t opcode) const {
        const bool near_branch =
            row.op == Op::jmp || row.op == Op::jcc || row.op == Op::call || row.op == Op::ret;
        if (prefixes_.repne && !near_branch) return false;
        if (prefixes_.rep && row.op != Op::ret && !(row.map == 0 && opcode == 0x90)) return false;
        if (prefixes_.operand_16 && row.width == Width::stack) return false;
        if (row.map == 0 && opcode == 0x90 && prefixes_.b) return false;  // xchg r8, rax
        if (row.op == Op::movsx && row.source == Source::dword && prefixes_.operand_16) return false;
        return true;
    }

    [[nodiscard]] std::uint8_t size_of(Width width) const {
        if (width == Width::byte) return 1;
        if (width == Width::stack || prefixes_.w) return 8;
        return prefixes_.operand_16 ? 2 : 4;
    }

    static std::uint8_t source_size(Source source, std::uint8_t size_bytes) {
        switch (source) {
            case Source::byte:
                return 1;
            case Source::word:
                return 2;
            case Source::dword:
                return 4;
            case Source::same:
                break;
        }
        return size_bytes;
    }

    [[nodiscard]] Operand register_operand(int number, std::uint8_t size_bytes) const {
        Operand out;
        out.kind = Operand::Kind::reg;
        out.reg = static_cast<std::uint8_t>(number);
        if (size_bytes == 1 && !prefixes_.rex && number >= 4 && number < 8) {  // ah, ch, dh, bh
            out.kind = Operand::Kind::high_byte;
            out.reg = static_cast<std::uint8_t>(number - 4);
        }
        return out;
    }

    struct ModRm {
        Operand rm;
        int reg = 0;
    };

    bool mod_rm(std::uint8_t rm_size_bytes, ModRm& out) {
        const auto value = byte();
        if (!value) return false;
        const int mod = *value >> 6;
        const int rm = *value & 7;
        out.reg = ((*value >> 3) & 7) | (prefixes_.r ? 8 : 0);
        if (mod == 3) {
            out.rm = register_operand(rm | (prefixes_.b ? 8 : 0), rm_size_bytes);
            return true;
        }
        Operand& mem = out.rm;
        mem.kind = Operand::Kind::mem;
        mem.segment = prefixes_.segment;
        if (rm == 4) {
            const auto sib = byte();
            if (!sib) return false;
            const int index = ((*sib >> 3) & 7) | (prefixes_.x ? 8 : 0);
            if (index != 4) mem.index = static_cast<std::uint8_t>(index);
            mem.scale = static_cast<std::uint8_t>(1 << (*sib >> 6));
            if ((*sib & 7) == 5 && mod == 0) return constant<std::int32_t>(mem.value);
            mem.base = static_cast<std::uint8_t>((*sib & 7) | (prefixes_.b ? 8 : 0));
        } else if (rm == 5 && mod == 0) {
            mem.rip_relative = true;
            return constant<std::int32_t>(mem.value);
        } else {
            mem.base = static_cast<std::uint8_t>(rm | (prefixes_.b ? 8 : 0));
        }
        if (mod == 1) return constant<std::int8_t>(mem.value);
        if (mod == 2) return constant<std::int32_t>(mem.value);
        return true;
    }

    bool immediate(std::uint8_t size_bytes, Operand& out) {
        out.kind = Operand::Kind::imm;
        if (size_bytes == 1) return constant<std::int8_t>(out.value);
        if (size_bytes == 2) return constant<std::int16_t>(out.value);
        return constant<std::int32_t>(out.value);
    }

    bool operands(const Row& row, std::uint8_t opcode, Instruction& out) {
        ModRm m;
        switch (row.form) {
            case Form::none:
                return true;
            case Form::hint:
                return mod_rm(8, m) && (opcode != 0x0D || m.rm.kind == Operand::Kind::mem);
            case Form::rm_r:
                if (!mod_rm(out.size_bytes, m)) return false;
                out.dst = m.rm;
                out.src = register_operand(m.reg, out.size_bytes);
                return true;
            case Form::r_rm:
            case Form::r_m:
            case Form::r_rm_imm8:
            case Form::r_rm_imm:
                if (!mod_rm(out.src_size_bytes, m)) return false;
                out.dst = register_operand(m.reg, out.size_bytes);
                out.src = m.rm;
                if (row.form == Form::r_m) return m.rm.kind == Operand::Kind::mem;
                if (row.form == Form::r_rm_imm8) return immediate(1, out.src2);
                if (row.form == Form::r_rm_imm) return immediate(out.size_bytes, out.src2);
                return true;
            case Form::rm:
                if (!mod_rm(out.size_bytes, m)) return false;
                out.dst = m.rm;
                return true;
            case Form::src_rm:
                if (!mod_rm(out.size_bytes, m)) return false;
                out.src = m.rm;
                return true;
            case Form::rm_imm8:
            case Form::rm_imm:
                if (!mod_rm(out.size_bytes, m)) return false;
                out.dst = m.rm;
                return immediate(row.form == Form::rm_imm8 ? 1 : out.size_bytes, out.src);
            case Form::rm_one:
            case Form::rm_cl:
                if (!mod_rm(out.size_bytes, m)) return false;
                out.dst = m.rm;
                if (row.form == Form::rm_one) {
                    out.src.kind = Operand::Kind::imm;
                    out.src.value = 1;
                } else {
                    out.src.kind = Operand::Kind::reg;
                    out.src.reg = 1;
                    out.src_size_bytes = 1;
                }
                return true;
            case Form::acc_imm:
                out.dst = register_operand(0, out.size_bytes);
                return immediate(out.size_bytes, out.src);
            case Form::o:
            case Form::o_imm: {
                const Operand reg = register_operand((opcode & 7) | (prefixes_.b ? 8 : 0), out.size_bytes);
                (row.op == Op::push ? out.src : out.dst) = reg;
                if (row.form == Form::o) return true;
                if (out.size_bytes < 8) return immediate(out.size_bytes, out.src);
                out.src.kind = Operand::Kind::imm;
                return constant<std::int64_t>(out.src.value);
            }
            case Form::imm8:
            case Form::rel8:
                return immediate(1, out.src);
            case Form::imm32:
            case Form::rel32:
                return immediate(4, out.src);
            case Form::imm16: {
                std::int64_t value = 0;
                if (!constant<std::uint16_t>(value)) return false;
                out.src.kind = Operand::Kind::imm;
                out.src.value = value;
                return true;
            }
        }
        return false;
    }

    static std::uint32_t undefined_flags(const Instruction& in) {
        switch (in.op) {
            case Op::and_:
            case Op::or_:
            case Op::xor_:
            case Op::test:
                return kAdjust;
            case Op::shl:
            case Op::shr:
            case Op::sar:
                // Overflow is defined for shifts by one, carry for shifts by no more than the operand's
                // width.
                if (in.src.kind == Operand::Kind::imm && in.src.value == 1) return kAdjust;
                return kAdjust | kOverflow | (in.size_bytes < 4 ? kCarry : 0);
            case Op::imul:
                return kAdjust | kParity | kZero | kSign;
            default:
                return 0;
        }
    }

    std::span<const std::byte> bytes_;
    std::size_t at_ = 0;
    Prefixes prefixes_;
};

}  // namespace

bool Instruction::writes_memory() const {
    if (op == Op::push || op == Op::call) return true;
    return dst.kind == Operand::Kind::mem && op != Op::cmp && op != Op::test;
}

bool Instruction::writes_register(std::uint8_t number) const {
    constexpr std::uint8_t kRsp = 4;
    switch (op) {
        case Op::push:
        case Op::call:
        case Op::ret:
            return number == kRsp;
        case Op::pop:
            return number == kRsp || number == dst.reg;
        case Op::leave:
            return number == kRsp || number == 5;
        case Op::sign_extend_acc:
            return number == 0;
        case Op::sign_extend_pair:
            return number == 2;
        case Op::cmp:
        case Op::test:
            return false;
        default:
            return (dst.kind == Operand::Kind::reg || dst.kind == Operand::Kind::high_byte) &&
                   dst.reg == number;
    }
}

std::optional<Instruction> decode(std::span<const std::byte> bytes) {
    return Decoder(bytes).run();
}

}  // namespace memattach::probe
