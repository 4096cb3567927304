#include "memattach/probe/emulate.h"

#include <bit>
#include <cstring>

namespace memattach::probe {
namespace {

__extension__ using Int128 = __int128;
__extension__ using UInt128 = unsigned __int128;

constexpr std::uint64_t kCarry = 1U << 0;
constexpr std::uint64_t kParity = 1U << 2;
constexpr std::uint64_t kAdjust = 1U << 4;
constexpr std::uint64_t kZero = 1U << 6;
constexpr std::uint64_t kSign = 1U << 7;
constexpr std::uint64_t kOverflow = 1U << 11;
constexpr std::uint64_t kAllStatus = kCarry | kParity | kAdjust | kZero | kSign | kOverflow;

using Field = unsigned long long user_regs_struct::*;
constexpr Field kRegisters[16] = {
    &user_regs_struct::rax, &user_regs_struct::rcx, &user_regs_struct::rdx, &user_regs_struct::rbx,
    &user_regs_struct::rsp, &user_regs_struct::rbp, &user_regs_struct::rsi, &user_regs_struct::rdi,
    &user_regs_struct::r8,  &user_regs_struct::r9,  &user_regs_struct::r10, &user_regs_struct::r11,
    &user_regs_struct::r12, &user_regs_struct::r13, &user_regs_struct::r14, &user_regs_struct::r15};

std::uint64_t mask_of(unsigned size_bytes) {
    return size_bytes >= 8 ? ~0ULL : (1ULL << (8 * size_bytes)) - 1;
}

std::uint64_t sign_bit(unsigned size_bytes) {
    return 1ULL << (8 * size_bytes - 1);
}

std::uint64_t sign_extend(std::uint64_t value, unsigned size_bytes) {
    const unsigned shift = 64 - 8 * size_bytes;
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(value << shift) >> shift);
}

/// A result and the status flags that go with it.
struct Computed {
    std::uint64_t value = 0;
    std::uint64_t flags = 0;
};

std::uint64_t result_flags(std::uint64_t value, unsigned size_bytes) {
    std::uint64_t flags = 0;
    if ((value & mask_of(size_bytes)) == 0) flags |= kZero;
    if ((value & sign_bit(size_bytes)) != 0) flags |= kSign;
    if (std::popcount(static_cast<unsigned>(value & 0xFF)) % 2 == 0) flags |= kParity;
    return flags;
}

Computed add(std::uint64_t a, std::uint64_t b, bool carry_in, unsigned size) {
    const std::uint64_t mask = mask_of(size);
    a &= mask;
    b &= mask;
    const std::uint64_t value = (a + b + (carry_in ? 1 : 0)) & mask;
    std::uint64_t flags = result_flags(value, size);
    if (value < a || (carry_in && value == a)) flags |= kCarry;
    if (((a ^ b ^ value) & 0x10) != 0) flags |= kAdjust;
    if ((~(a ^ b) & (a ^ value) & sign_bit(size)) != 0) flags |= kOverflow;
    return {value, flags};
}

Computed subtract(std::uint64_t a, std::uint64_t b, bool borrow_in, unsigned size) {
    const std::uint64_t mask = mask_of(size);
    a &= mask;
    b &= mask;
    const std::uint64_t value = (a - b - (borrow_in ? 1 : 0)) & mask;
    std::uint64_t flags = result_flags(value, size);
    if (a < b || (borrow_in && a == b)) flags |= kCarry;
    if (((a ^ b ^ value) & 0x10) != 0) flags |= kAdjust;
    if (((a ^ b) & (a ^ value) & sign_bit(size)) != 0) flags |= kOverflow;
    return {value, flags};
}

Computed shift(Op op, std::uint64_t a, unsigned count, unsigned size) {  // count ≠ 0, already masked
    const unsigned bits = 8 * size;
    a &= mask_of(size);
    std::uint64_t value = 0;
    bool carry = false;
    bool overflow = false;
    if (op == Op::shl) {
        value = count < 64 ? a << count : 0;
        carry = count <= bits && ((a >> (bits - count)) & 1) != 0;
        value &= mask_of(size);
        overflow = carry != ((value & sign_bit(size)) != 0);
    } else if (op == Op::shr) {
        value = a >> count;
        carry = ((a >> (count - 1)) & 1) != 0;
        overflow = (a & sign_bit(size)) != 0;
    } else {
        const auto wide = static_cast<std::int64_t>(sign_extend(a, size));
        value = static_cast<std::uint64_t>(wide >> count) & mask_of(size);
        carry = ((wide >> (count - 1)) & 1) != 0;
    }
    std::uint64_t flags = result_flags(value, size);
    if (carry) flags |= kCarry;
    if (overflow) flags |= kOverflow;
    return {value, flags};
}

Computed multiply(std::uint64_t a, std::uint64_t b, unsigned size) {
    const auto product = static_cast<Int128>(static_cast<std::int64_t>(sign_extend(a, size))) *
                         static_cast<std::int64_t>(sign_extend(b, size));
    const std::uint64_t value = static_cast<std::uint64_t>(product) & mask_of(size);
    const bool overflow = product != static_cast<Int128>(static_cast<std::int64_t>(sign_extend(value, size)));
    return {value, overflow ? kCarry | kOverflow : 0};
}

bool condition_holds(unsigned condition, std::uint64_t flags) {
    const bool carry = (flags & kCarry) != 0;
    const bool zero = (flags & kZero) != 0;
    const bool sign = (flags & kSign) != 0;
    const bool overflow = (flags & kOverflow) != 0;
    bool holds = false;
    switch (condition >> 1) {
        case 0:
            holds = overflow;
            break;
        case 1:
            holds = carry;
            break;
        case 2:
            holds = zero;
            break;
        case 3:
            holds = carry || zero;
            break;
        case 4:
            holds = sign;
            break;
        case 5:
            holds = (flags & kParity) != 0;
            break;
        case 6:
            holds = sign != overflow;
            break;
        default:
            holds = zero || sign != overflow;
            break;
    }
    return holds != ((condition & 1) != 0);
}

/// One instruction at work. Everything is computed on a copy of the registers; memory is written last, and
/// the copy is taken over only when that has succeeded.
class Emulation {
  public:
    Emulation(const Instruction& in, std::uint64_t at, const user_regs_struct& regs, OperandMemory& memory)
        : in_(in), memory_(memory), next_(at + in.length), before_(regs), after_(regs) {
        after_.rip = next_;
    }

    [[nodiscard]] const user_regs_struct& after() const { return after_; }

    bool run() {
        const unsigned size = in_.size_bytes;
        std::uint64_t dst = 0;
        std::uint64_t src = 0;
        switch (in_.op) {
            case Op::nop:
                return true;
            case Op::mov:
                return load(in_.src, size, src) && store(in_.dst, size, src);
            case Op::movzx:
                return load(in_.src, in_.src_size_bytes, src) && store(in_.dst, size, src);
            case Op::movsx:
                return load(in_.src, in_.src_size_bytes, src) &&
                       store(in_.dst, size, sign_extend(src, in_.src_size_bytes));
            case Op::lea:
                return store(in_.dst, size, effective_address(in_.src, false));
            case Op::push:
                return load(in_.src, 8, src) && push(src);
            case Op::pop:
                if (!read(before_.rsp, 8, src)) return false;
                after_.rsp += 8;
                return store(in_.dst, 8, src);
            case Op::add:
            case Op::or_:
            case Op::adc:
            case Op::sbb:
            case Op::and_:
            case Op::sub:
            case Op::xor_:
            case Op::cmp:
            case Op::test:
                if (!load(in_.dst, size, dst) || !load(in_.src, size, src)) return false;
                return arithmetic(dst, src);
            case Op::not_:
                return load(in_.dst, size, dst) && store(in_.dst, size, ~dst);
            case Op::neg:
                return load(in_.dst, size, dst) && finish(subtract(0, dst, false, size), kAllStatus);
            case Op::inc:
                return load(in_.dst, size, dst) && finish(add(dst, 1, false, size), kAllStatus & ~kCarry);
            case Op::dec:
                return load(in_.dst, size, dst) &&
                       finish(subtract(dst, 1, false, size), kAllStatus & ~kCarry);
            case Op::shl:
            case Op::shr:
            case Op::sar: {
                if (!load(in_.dst, size, dst) || !load(in_.src, 1, src)) return false;
                const auto count = static_cast<unsigned>(src & (size == 8 ? 63 : 31));
                if (count == 0) return store(in_.dst, size, dst);
                return finish(shift(in_.op, dst, count, size), kAllStatus & ~kAdjust);
            }
            case Op::imul: {
                const Operand& left = in_.src2.kind == Operand::Kind::none ? in_.dst : in_.src2;
                if (!load(left, size, dst) || !load(in_.src, size, src)) return false;
                return finish(multiply(dst, src, size), kCarry | kOverflow);
            }
            case Op::mul: {
                if (!load(in_.src, size, src)) return false;
                const auto product = static_cast<UInt128>(before_.rax & mask_of(size)) * src;
                const auto high = static_cast<std::uint64_t>(product >> (8 * size)) & mask_of(size);
                set_flags(high != 0 ? kCarry | kOverflow : 0, kCarry | kOverflow);
                return store(accumulator(0), size, static_cast<std::uint64_t>(product)) &&
                       store(accumulator(2), size, high);
            }
            case Op::cmov:
                if (!load(in_.dst, size, dst) || !load(in_.src, size, src)) return false;
                return store(in_.dst, size, condition_holds(in_.condition, before_.eflags) ? src : dst);
            case Op::setcc:
                return store(in_.dst, 1, condition_holds(in_.condition, before_.eflags) ? 1 : 0);
            case Op::jmp:
                return branch_target(src) && jump(src);
            case Op::jcc:
                if (condition_holds(in_.condition, before_.eflags)) {
                    return branch_target(src) && jump(src);
                }
                return true;
            case Op::call:
                return branch_target(src) && jump(src) && push(next_);
            case Op::ret:
                if (!read(before_.rsp, 8, src)) return false;
                after_.rsp += 8 + static_cast<std::uint64_t>(in_.src.value);
                return jump(src);
            case Op::leave:
                if (!read(before_.rbp, 8, src)) return false;
                after_.rsp = before_.rbp + 8;
                after_.rbp = src;
                return true;
            case Op::sign_extend_acc:
                return store(accumulator(0), size, sign_extend(before_.rax, size / 2));
            case Op::sign_extend_pair:
                return store(accumulator(2), size, (before_.rax & sign_bit(size)) != 0 ? ~0ULL : 0);
        }
        return false;
    }

  private:
    static Operand accumulator(std::uint8_t reg) {
        Operand out;
        out.kind = Operand::Kind::reg;
        out.reg = reg;
        return out;
    }

    bool arithmetic(std::uint64_t dst, std::uint64_t src) {
        const unsigned size = in_.size_bytes;
        const bool carry = (before_.eflags & kCarry) != 0;
        switch (in_.op) {
            case Op::add:
                return finish(add(dst, src, false, size), kAllStatus);
            case Op::adc:
                return finish(add(dst, src, carry, size), kAllStatus);
            case Op::sub:
                return finish(subtract(dst, src, false, size), kAllStatus);
            case Op::sbb:
                return finish(subtract(dst, src, carry, size), kAllStatus);
            case Op::cmp:
                set_flags(subtract(dst, src, false, size).flags, kAllStatus);
                return true;
            case Op::test:
                set_flags(result_flags(dst & src, size), kAllStatus & ~kAdjust);
                return true;
            case Op::and_:
                return finish({dst & src, result_flags(dst & src, size)}, kAllStatus & ~kAdjust);
            case Op::or_:
                return finish({dst | src, result_flags(dst | src, size)}, kAllStatus & ~kAdjust);
            default:
                return finish({dst ^ src, result_flags(dst ^ src, size)}, kAllStatus & ~kAdjust);
        }
    }

    void set_flags(std::uint64_t flags, std::uint64_t mask) {
        after_.eflags = (before_.eflags & ~mask) | (flags & mask);
    }

    bool finish(const Computed& computed, std::uint64_t flag_mask) {
        set_flags(computed.flags, flag_mask);
        return store(in_.dst, in_.size_bytes, computed.value);
    }

    /// A target outside of user space raises a fault in the branch itself: the real thing has to do that.
    bool jump(std::uint64_t target) {
        if (target >> 47 != 0) return false;
        after_.rip = target;
        return true;
    }

    bool branch_target(std::uint64_t& out) {
        if (in_.src.kind == Operand::Kind::imm) {
            out = next_ + static_cast<std::uint64_t>(in_.src.value);
            return true;
        }
        return load(in_.src, 8, out);
    }

    bool push(std::uint64_t value) {
        after_.rsp -= 8;
        return write(after_.rsp, 8, value);
    }

    [[nodiscard]] std::uint64_t effective_address(const Operand& mem, bool with_segment) const {
        auto address = static_cast<std::uint64_t>(mem.value);
        if (mem.rip_relative) address += next_;
        if (mem.base != Operand::kNoRegister) address += before_.*kRegisters[mem.base];
        if (mem.index != Operand::kNoRegister) address += before_.*kRegisters[mem.index] * mem.scale;
        if (with_segment && mem.segment == Operand::Segment::fs) address += before_.fs_base;
        if (with_segment && mem.segment == Operand::Segment::gs) address += before_.gs_base;
        return address;
    }

    bool load(const Operand& operand, unsigned size_bytes, std::uint64_t& out) {
        switch (operand.kind) {
            case Operand::Kind::none:
                return false;
            case Operand::Kind::imm:
                out = static_cast<std::uint64_t>(operand.value);
                break;
            case Operand::Kind::reg:
                out = before_.*kRegisters[operand.reg];
                break;
            case Operand::Kind::high_byte:
                out = before_.*kRegisters[operand.reg] >> 8;
                break;
            case Operand::Kind::mem:
                return read(effective_address(operand, true), size_bytes, out);
        }
        out &= mask_of(size_bytes);
        return true;
    }

    /// As the processor does: 32-bit results clear the upper half, narrower ones leave the rest alone.
    bool store(const Operand& operand, unsigned size_bytes, std::uint64_t value) {
        value &= mask_of(size_bytes);
        if (operand.kind == Operand::Kind::mem)
            return write(effective_address(operand, true), size_bytes, value);
        if (operand.kind == Operand::Kind::high_byte) {
            auto& reg = after_.*kRegisters[operand.reg];
            reg = (reg & ~0xFF00ULL) | value << 8;
            return true;
        }
        if (operand.kind != Operand::Kind::reg) return false;
        auto& reg = after_.*kRegisters[operand.reg];
        if (size_bytes < 4) value |= reg & ~mask_of(size_bytes);
        reg = value;
        return true;
    }

    bool read(std::uint64_t address, unsigned size_bytes, std::uint64_t& out) {
        out = 0;
        return memory_.load(address, std::as_writable_bytes(std::span(&out, 1)).first(size_bytes));
    }

    bool write(std::uint64_t address, unsigned size_bytes, std::uint64_t value) {
        return memory_.store(address, std::as_bytes(std::span(&value, 1)).first(size_bytes));
    }

    const Instruction& in_;
    OperandMemory& memory_;
    std::uint64_t next_;
    const user_regs_struct& before_;
    user_regs_struct after_;
};

}  // namespace

std::uint64_t register_of(const user_regs_struct& regs, std::uint8_t number) {
    return regs.*kRegisters[number & 15];
}

bool emulate(const Instruction& instruction, base::Address at, user_regs_struct& regs,
             OperandMemory& memory) {
    Emulation emulation(instruction, at.value(), regs, memory);
    if (!emulation.run()) return false;
    regs = emulation.after();
    return true;
}

}  // namespace memattach::probe
