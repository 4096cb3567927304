#include <algorithm>
#include <cstring>

#include "memattach/probe/emulate.h"
#include "opcode_table.h"

namespace memattach::probe {
namespace {

constexpr std::uint32_t kCarry = 1U << 0;
constexpr std::uint32_t kAdjust = 1U << 4;
constexpr std::uint32_t kParity = 1U << 2;
constexpr std::uint32_t kZero = 1U << 6;
constexpr std::uint32_t kSign = 1U << 7;
constexpr std::uint32_t kOverflow = 1U << 11;

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
        const auto row = find_opcode(map, *opcode, peek_digit());
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
    [[nodiscard]] bool prefixes_allowed(const OpcodeRow& row, std::uint8_t opcode) const {
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

    bool operands(const OpcodeRow& row, std::uint8_t opcode, Instruction& out) {
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
            case Op::mul:
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
        case Op::mul:
            return number == 0 || number == 2;
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
