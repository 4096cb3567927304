#include "shadow_counter.h"

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <limits>

namespace memattach::probe {
namespace {

class Assembler {
  public:
    Assembler(std::span<std::byte> code, std::uint64_t at) : code_(code), at_(at) {}

    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] std::uint64_t here() const { return at_ + size_; }
    [[nodiscard]] bool ok() const { return ok_; }

    void bytes(std::span<const std::byte> code) {
        ok_ = ok_ && size_ + code.size() <= code_.size();
        if (!ok_) return;
        std::memcpy(code_.data() + size_, code.data(), code.size());
        size_ += code.size();
    }
    void bytes(std::initializer_list<unsigned> code) {
        for (const unsigned value : code) {
            const auto one = static_cast<std::byte>(value);
            bytes(std::span(&one, 1));
        }
    }
    /// A 32-bit displacement to a place that isn't known yet: set with land().
    std::size_t hole() {
        bytes({0, 0, 0, 0});
        return size_;
    }
    void land(std::size_t hole) {
        const auto distance = static_cast<std::int32_t>(size_ - hole);
        if (ok_) std::memcpy(code_.data() + hole - 4, &distance, 4);
    }
    /// A 32-bit displacement to `target`, counted from the end of these four bytes.
    void relative(std::uint64_t target) {
        const auto distance = displacement(target, here() + 4);
        ok_ = ok_ && distance.has_value();
        if (ok_) bytes(std::as_bytes(std::span(&*distance, 1)));
    }
    static std::optional<std::int32_t> displacement(std::uint64_t target, std::uint64_t from) {
        const auto distance = static_cast<std::int64_t>(target - from);
        if (distance < std::numeric_limits<std::int32_t>::min() ||
            distance > std::numeric_limits<std::int32_t>::max())
            return std::nullopt;
        return static_cast<std::int32_t>(distance);
    }

  private:
    std::span<std::byte> code_;
    std::size_t size_ = 0;
    std::uint64_t at_;
    bool ok_ = true;
};

const Operand* rip_operand(const Instruction& instruction) {
    for (const Operand* operand : {&instruction.dst, &instruction.src, &instruction.src2}) {
        if (operand->kind == Operand::Kind::mem && operand->rip_relative) return operand;
    }
    return nullptr;
}

/// An instruction whose memory operand is told by its distance from the instruction itself.
bool move_rip_relative(std::span<const std::byte> code, std::uint64_t from, std::int64_t old_distance,
                       Assembler& out) {
    const auto distance = Assembler::displacement(
        from + code.size() + static_cast<std::uint64_t>(old_distance), out.here() + code.size());
    if (!distance) return false;
    const auto old = static_cast<std::int32_t>(old_distance);
    std::array<std::byte, 15> moved{};
    std::memcpy(moved.data(), code.data(), code.size());
    // Only a constant can stand behind the distance.
    for (std::size_t at = code.size() - 4; at > 1; --at) {
        if (std::memcmp(code.data() + at, &old, 4) != 0) continue;
        std::memcpy(moved.data() + at, &*distance, 4);
        out.bytes(std::span(moved).first(code.size()));
        return true;
    }
    return false;
}

/// False where what follows is never reached, or where the instruction can't be moved.
bool move(const Instruction& instruction, std::span<const std::byte> code, std::uint64_t from,
          Assembler& out) {
    if (instruction.op == Op::ret) return false;
    if (!instruction.is_branch()) {
        if (const Operand* operand = rip_operand(instruction))
            return move_rip_relative(code, from, operand->value, out);
        out.bytes(code);
        return true;
    }
    if (instruction.src.kind != Operand::Kind::imm) return false;
    const std::uint64_t target = from + code.size() + static_cast<std::uint64_t>(instruction.src.value);
    if (instruction.op == Op::jcc) {
        out.bytes({0x0F, 0x80U | instruction.condition});
    } else {
        out.bytes({instruction.op == Op::call ? 0xE8U : 0xE9U});
    }
    out.relative(target);
    return true;
}

unsigned number_of(Argument argument) {
    switch (argument) {
        case Argument::rdi:
            return 7;
        case Argument::rsi:
            return 6;
        case Argument::rdx:
            return 2;
        case Argument::rcx:
            return 1;
        case Argument::r8:
            return 8;
        case Argument::r9:
            return 9;
        case Argument::none:
            break;
    }
    return 0;
}

/// REX.W, with the register's fourth bit in `r`.
unsigned rex(unsigned reg) {
    return reg >= 8 ? 0x4C : 0x48;
}

/// Leads to the stop where argument > [limit].
std::size_t stop_if_above(Argument argument, std::uint64_t limit_at, Assembler& out) {
    const unsigned reg = number_of(argument);
    out.bytes({rex(reg), 0x3B, (reg & 7) << 3 | 5});  // cmp reg, [rip + …]
    out.relative(limit_at);
    out.bytes({0x0F, 0x87});  // ja
    return out.hole();
}

std::size_t stop_if_watched(Argument argument, std::uint64_t table_at, Assembler& out) {
    const unsigned reg = number_of(argument);
    out.bytes({0x50, 0x51});  // push rax; push rcx
    if (reg >= 8) out.bytes({0x44});
    out.bytes({0x89, 0xC0 | (reg & 7) << 3});   // mov eax, reg
    out.bytes({0xC1, 0xE8, 0x04});              // shr eax, 4
    out.bytes({0x25, 0xFF, 0x03, 0x00, 0x00});  // and eax, 1023
    out.bytes({0x48, 0x8D, 0x0D});              // lea rcx, [rip + …]
    out.relative(table_at);
    out.bytes({rex(reg), 0x3B, (reg & 7) << 3 | 4, 0xC1});  // cmp reg, [rcx + 8 * rax]
    out.bytes({0x59, 0x58});                                // pop rcx; pop rax
    out.bytes({0x0F, 0x84});                                // je
    return out.hole();
}

/// Where the fields are, from the beginning of the shared pages.
class Fields {
  public:
    explicit Fields(std::uint64_t at) : at_(at) {}
    [[nodiscard]] std::uint64_t hits(std::size_t index) const {
        return at_ + offsetof(ShadowCounters, hits) + 8 * index;
    }
    [[nodiscard]] std::uint64_t countdown(std::size_t group) const {
        return at_ + offsetof(ShadowCounters, countdown) + 8 * group;
    }
    [[nodiscard]] std::uint64_t big_bytes() const { return at_ + offsetof(ShadowCounters, big_bytes); }
    [[nodiscard]] std::uint64_t watched() const { return at_ + offsetof(ShadowCounters, watched); }
    [[nodiscard]] std::uint64_t until_mark() const { return at_ + offsetof(ShadowCounters, until_mark); }
    [[nodiscard]] std::uint64_t mark_every() const { return at_ + offsetof(ShadowCounters, mark_every); }
    [[nodiscard]] std::uint64_t marked() const { return at_ + offsetof(ShadowCounters, marked); }
    [[nodiscard]] std::uint64_t last_mark() const { return at_ + offsetof(ShadowCounters, last_mark); }
    [[nodiscard]] std::uint64_t start_ticks() const { return at_ + offsetof(ShadowCounters, start_ticks); }
    [[nodiscard]] std::uint64_t marks() const { return at_ + offsetof(ShadowCounters, marks); }
    [[nodiscard]] std::uint64_t entry() const { return at_ + offsetof(ShadowCounters, entry); }
    [[nodiscard]] std::uint64_t kept_rax() const { return at_ + offsetof(ShadowCounters, kept_rax); }
    [[nodiscard]] std::uint64_t kept_rdx() const { return at_ + offsetof(ShadowCounters, kept_rdx); }

  private:
    std::uint64_t at_;
};

/// Writes down when it was; leads on with the flags of whether that was the last mark.
void write_mark(const Fields& fields, Assembler& out) {
    out.bytes({0x50, 0x52, 0x51});        // push rax; push rdx; push rcx
    out.bytes({0x0F, 0x31});              // rdtsc
    out.bytes({0x48, 0xC1, 0xE2, 0x20});  // shl rdx, 32
    out.bytes({0x48, 0x09, 0xD0});        // or rax, rdx
    out.bytes({0x48, 0x8B, 0x15});        // mov rdx, [rip + …]
    out.relative(fields.marked());
    out.bytes({0x48, 0x8D, 0x0D});  // lea rcx, [rip + …]
    out.relative(fields.marks());
    out.bytes({0x48, 0x89, 0x04, 0xD1});  // mov [rcx + 8 * rdx], rax
    out.bytes({0x48, 0xFF, 0xC2});        // inc rdx
    out.bytes({0x48, 0x89, 0x15});        // mov [rip + …], rdx
    out.relative(fields.marked());
    out.bytes({0x48, 0x8B, 0x05});  // mov rax, [rip + …]
    out.relative(fields.mark_every());
    out.bytes({0x48, 0x89, 0x05});  // mov [rip + …], rax
    out.relative(fields.until_mark());
    out.bytes({0x48, 0x3B, 0x15});  // cmp rdx, [rip + …]
    out.relative(fields.last_mark());
    out.bytes({0x59, 0x5A, 0x58});  // pop rcx; pop rdx; pop rax
}

}  // namespace

std::optional<CounterStub> make_counter(const PlannedSite& planned, std::size_t index, std::size_t group,
                                        std::uint64_t stub_at, std::uint64_t counters_at, Stubs kind) {
    static_assert(ShadowCounters::kWatched == 1024);
    const Site& site = planned.site;
    const std::span<const std::byte> code = planned.code;
    const Fields fields(counters_at);
    CounterStub stub;
    Assembler out(stub.code, stub_at);
    std::array<std::size_t, 5> to_stop{};
    std::size_t stops = 0;
    std::size_t to_mark = 0;
    const bool counts = kind == Stubs::counting;
    if (counts) {
        out.bytes({0x48, 0xFF, 0x05});  // inc qword [rip + …]
        out.relative(fields.hits(index));
    }
    if (counts && !site.is_release()) {
        for (const Argument size : {site.args.size, site.args.count}) {
            if (size != Argument::none) to_stop[stops++] = stop_if_above(size, fields.big_bytes(), out);
        }
        out.bytes({0x48, 0xFF, 0x0D});  // dec qword [rip + …]
        out.relative(fields.countdown(group));
        out.bytes({0x0F, 0x84});  // jz
        to_stop[stops++] = out.hole();
    }
    if (!site.is_release()) {
        out.bytes({0x48, 0xFF, 0x0D});
        out.relative(fields.until_mark());
        out.bytes({0x0F, 0x84});
        to_mark = out.hole();
    }
    const std::uint64_t marked = out.here();
    if (counts && site.args.old != Argument::none) {
        if (site.args.old == Argument::rcx) return std::nullopt;
        to_stop[stops++] = stop_if_watched(site.args.old, fields.watched(), out);
    }
    const std::uint64_t go_on = out.here();
    std::size_t moved = 0;
    while (moved < CounterStub::kJumpBytes) {
        const auto instruction = decode(code.subspan(moved));
        if (!instruction || moved + instruction->length > code.size()) return std::nullopt;
        if (!move(*instruction, code.subspan(moved, instruction->length), planned.address + moved, out))
            return std::nullopt;
        moved += instruction->length;
        if (instruction->op == Op::jmp && moved < CounterStub::kJumpBytes) return std::nullopt;
    }
    out.bytes({0xE9});
    out.relative(planned.address + moved);
    if (to_mark != 0) {
        out.land(to_mark);
        write_mark(fields, out);
        out.bytes({0x0F, 0x84});  // je
        to_stop[stops++] = out.hole();
        out.bytes({0xE9});
        out.relative(marked);
    }
    for (std::size_t i = 0; i < stops; ++i) out.land(to_stop[i]);
    out.bytes({0xCC});
    stub.stop_offset = out.size();
    out.bytes({0xE9});
    out.relative(go_on);
    stub.size_bytes = out.size();
    const auto to_stub = Assembler::displacement(stub_at, planned.address + CounterStub::kJumpBytes);
    if (!out.ok() || !to_stub) return std::nullopt;
    stub.jump[0] = std::byte{0xE9};
    std::memcpy(stub.jump.data() + 1, &*to_stub, 4);
    return stub;
}

EntryStub make_entry(std::uint64_t stub_at, std::uint64_t counters_at) {
    const Fields fields(counters_at);
    EntryStub stub;
    Assembler out(stub.code, stub_at);
    out.bytes({0x48, 0x89, 0x05});  // mov [rip + …], rax
    out.relative(fields.kept_rax());
    out.bytes({0x48, 0x89, 0x15});  // mov [rip + …], rdx
    out.relative(fields.kept_rdx());
    out.bytes({0x0F, 0x31});  // rdtsc
    out.bytes({0x89, 0x05});  // mov [rip + …], eax
    out.relative(fields.start_ticks());
    out.bytes({0x89, 0x15});  // mov [rip + …], edx
    out.relative(fields.start_ticks() + 4);
    out.bytes({0x48, 0x8B, 0x05});  // mov rax, [rip + …]
    out.relative(fields.kept_rax());
    out.bytes({0x48, 0x8B, 0x15});  // mov rdx, [rip + …]
    out.relative(fields.kept_rdx());
    out.bytes({0xFF, 0x25});  // jmp [rip + …]
    out.relative(fields.entry());
    stub.size_bytes = out.size();
    return stub;
}

}  // namespace memattach::probe
