/// A breakpoint replaces the first byte of an instruction. To let the thread go on without taking the
/// breakpoint out (which would lose every other thread's hit meanwhile) the displaced instruction is carried
/// out here, on the thread's registers, and its program counter is set behind it.
///
///     const auto displaced = decode(bytes_at_entry);            // when the breakpoint is planned
///     …
///     if (!emulate(*displaced, address, regs, memory)) …        // at each hit; false: single-step it
///     instead
///
/// Only what compilers put at the entry of a function and behind a call is known: moves, stack operations,
/// integer arithmetic and logic, branches, no-ops. Everything else is refused by decode(), never guessed.
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "memattach/base/address.h"

namespace memattach::probe {

enum class Op : std::uint8_t {
    nop,
    mov,
    movzx,
    movsx,
    lea,
    push,
    pop,
    add,  // these eight in the order of the instruction set's own numbering
    or_,
    adc,
    sbb,
    and_,
    sub,
    xor_,
    cmp,
    test,
    not_,
    neg,
    inc,
    dec,
    shl,
    shr,
    sar,
    imul,
    mul,  ///< rax times the operand, to rdx:rax
    cmov,
    setcc,
    jmp,
    jcc,
    call,
    ret,
    leave,
    sign_extend_acc,   ///< cbw, cwde, cdqe
    sign_extend_pair,  ///< cwd, cdq, cqo
};

/// A register (hardware number: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15), a memory operand or a
/// constant.
struct Operand {
    enum class Kind : std::uint8_t { none, reg, high_byte, mem, imm };
    static constexpr std::uint8_t kNoRegister = 0xFF;
    enum class Segment : std::uint8_t { flat, fs, gs };

    Kind kind = Kind::none;
    std::uint8_t reg = kNoRegister;
    std::uint8_t base = kNoRegister;
    std::uint8_t index = kNoRegister;
    std::uint8_t scale = 1;
    bool rip_relative = false;
    Segment segment = Segment::flat;
    std::int64_t value = 0;  ///< the constant, or the memory operand's displacement
};

struct Instruction {
    Op op = Op::nop;
    std::uint8_t length = 0;
    std::uint8_t size_bytes = 8;      ///< of the operation
    std::uint8_t src_size_bytes = 8;  ///< of the source, where it is narrower (movzx, movsx)
    std::uint8_t condition = 0;       ///< jcc, cmov, setcc: low four bits of the opcode
    Operand dst;
    Operand src;
    Operand src2;                       ///< imul with a constant
    std::uint32_t undefined_flags = 0;  ///< status flags that the processor's manual leaves undefined

    [[nodiscard]] bool is_branch() const {
        return op == Op::jmp || op == Op::jcc || op == Op::call || op == Op::ret;
    }
    [[nodiscard]] bool writes_memory() const;
    /// Whether register `number` (hardware numbering) may have another value afterwards.
    [[nodiscard]] bool writes_register(std::uint8_t number) const;
};

/// The instruction at the start of `bytes` (15 bytes always suffice), or nothing where it is not one that
/// emulate() can do.
std::optional<Instruction> decode(std::span<const std::byte> bytes);

/// The stopped thread's memory.
class OperandMemory {
  public:
    OperandMemory() = default;
    OperandMemory(const OperandMemory&) = delete;
    OperandMemory& operator=(const OperandMemory&) = delete;
    virtual ~OperandMemory() = default;
    [[nodiscard]] virtual bool load(std::uint64_t address, std::span<std::byte> out) = 0;
    [[nodiscard]] virtual bool store(std::uint64_t address, std::span<const std::byte> bytes) = 0;
};

/// Carries `instruction`, which stands at `at`, out on `regs`; regs.rip is where it leads to. False where a
/// memory operand can't be reached: nothing has been changed then, and executing the real thing will raise
/// the fault that the program would have seen.
[[nodiscard]] bool emulate(const Instruction& instruction, base::Address at, user_regs_struct& regs,
                           OperandMemory& memory);

/// By its hardware number, see Operand.
[[nodiscard]] std::uint64_t register_of(const user_regs_struct& regs, std::uint8_t number);

/// Where in a function's entry sequence a breakpoint goes.
struct ProbePoint {
    std::uint32_t offset = 0;  ///< bytes from the function's entry
    std::uint32_t return_slot_bytes =
        0;  ///< the return address lies at rsp + this when the breakpoint is hit
    std::optional<Instruction> displaced;  ///< nothing: it has to be single-stepped
    std::byte original{};                  ///< the byte that the int3 replaces
};

/// The entry's first instruction, to be single-stepped where it can't be emulated; or behind the pushes that
/// it begins with, where what follows is cheaper. The six argument registers still are as the caller set
/// them. With `skip_null_argument` (free, whose first act in glibc is `test rdi,rdi; je`) it may lie behind a
/// branch that is taken only where the first argument is null, and that one alone is kept. Nothing for bytes
/// that hold no instruction to speak of (an int3 that somebody else planted, no bytes).
std::optional<ProbePoint> choose_probe_point(std::span<const std::byte> entry,
                                             bool skip_null_argument = false);

}  // namespace memattach::probe
