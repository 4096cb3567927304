#include "memattach/probe/emulate.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <random>
#include <vector>

using namespace memattach;

namespace {

std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
    std::vector<std::byte> out;
    for (const int value : values) out.push_back(static_cast<std::byte>(value));
    return out;
}

/// A child that executes one instruction at a time on registers that the test sets. It shares its memory with
/// the test: `code` is executable there, `data` is what memory operands point into.
class NativeProcessor final : public probe::OperandMemory {
  public:
    static constexpr std::size_t kDataBytes = 4096;
    /// On either side of the data: a push goes where the stack pointer is, which is as far from the operand
    /// as a displacement reaches. What the processor found there the emulation wouldn't.
    static constexpr std::size_t kGuardBytes = (1ULL << 31) + (1ULL << 20);

    NativeProcessor() {
        code_ = static_cast<std::byte*>(
            mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        REQUIRE(code_ != MAP_FAILED);
        void* around = mmap(nullptr, 2 * kGuardBytes + kDataBytes, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        REQUIRE(around != MAP_FAILED);
        data_ = static_cast<std::byte*>(around) + kGuardBytes;
        REQUIRE(mmap(data_, kDataBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1,
                     0) == data_);
        pid_ = fork();
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) {
            if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(1);
            raise(SIGSTOP);
            _exit(0);
        }
        int status = 0;
        waitpid(pid_, &status, 0);
        traced_ = WIFSTOPPED(status);
        if (traced_) ptrace(PTRACE_GETREGS, pid_, nullptr, &first_);
    }
    NativeProcessor(const NativeProcessor&) = delete;
    NativeProcessor& operator=(const NativeProcessor&) = delete;
    ~NativeProcessor() override {
        if (traced_) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        }
        munmap(code_, 4096);
        munmap(data_ - kGuardBytes, 2 * kGuardBytes + kDataBytes);
    }

    [[nodiscard]] bool usable() const { return traced_; }
    [[nodiscard]] std::uint64_t code() const { return reinterpret_cast<std::uint64_t>(code_) + 1024; }
    [[nodiscard]] std::byte* data() const { return data_; }
    [[nodiscard]] std::uint64_t data_address() const { return reinterpret_cast<std::uint64_t>(data_); }
    [[nodiscard]] const user_regs_struct& first() const { return first_; }

    /// False where the instruction raised a fault instead of ending.
    bool step(std::span<const std::byte> instruction, user_regs_struct& regs) {
        std::memset(code_ + 1024, 0xCC, 64);
        std::memcpy(code_ + 1024, instruction.data(), instruction.size());
        REQUIRE(ptrace(PTRACE_SETREGS, pid_, nullptr, &regs) == 0);
        REQUIRE(ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) == 0);
        int status = 0;
        REQUIRE(waitpid(pid_, &status, 0) == pid_);
        REQUIRE(WIFSTOPPED(status));
        siginfo_t info{};
        ptrace(PTRACE_GETSIGINFO, pid_, nullptr, &info);
        REQUIRE(ptrace(PTRACE_GETREGS, pid_, nullptr, &regs) == 0);
        return WSTOPSIG(status) == SIGTRAP && info.si_code == TRAP_TRACE;
    }

    bool load(std::uint64_t address, std::span<std::byte> out) override {
        if (!inside(address, out.size())) return false;
        std::memcpy(out.data(), data_ + (address - data_address()), out.size());
        return true;
    }
    bool store(std::uint64_t address, std::span<const std::byte> bytes) override {
        if (!inside(address, bytes.size())) return false;
        std::memcpy(data_ + (address - data_address()), bytes.data(), bytes.size());
        return true;
    }

  private:
    [[nodiscard]] bool inside(std::uint64_t address, std::size_t size) const {
        return address >= data_address() && address - data_address() <= kDataBytes - size;
    }
    std::byte* code_ = nullptr;
    std::byte* data_ = nullptr;
    pid_t pid_ = 0;
    bool traced_ = false;
    user_regs_struct first_{};
};

class NoMemory final : public probe::OperandMemory {
  public:
    bool load(std::uint64_t, std::span<std::byte>) override { return false; }
    bool store(std::uint64_t, std::span<const std::byte>) override { return false; }
};

using Rng = std::mt19937_64;

/// Bytes that often are an instruction: prefixes and opcodes from the places that decode() knows, the rest at
/// random.
std::array<std::byte, 15> random_instruction(Rng& rng) {
    std::array<std::byte, 15> out;
    for (auto& b : out) b = static_cast<std::byte>(rng());
    std::size_t at = 0;
    const auto put = [&](std::uint64_t value) { out[at++] = static_cast<std::byte>(value); };
    if (rng() % 8 == 0) put(0x66);
    if (rng() % 16 == 0) put(rng() % 2 == 0 ? 0xF3 : 0xF2);
    if (rng() % 16 == 0) put(rng() % 2 == 0 ? 0x3E : 0x2E);
    if (rng() % 2 == 0) put(0x40 | rng() % 16);
    if (rng() % 3 == 0) put(0x0F);
    return out;
}

std::uint64_t random_value(Rng& rng) {
    constexpr std::uint64_t kEdges[] = {0,
                                        1,
                                        0x7F,
                                        0x80,
                                        0xFF,
                                        0x7FFFFFFF,
                                        0x80000000,
                                        0xFFFFFFFF,
                                        0x7FFFFFFFFFFFFFFF,
                                        0x8000000000000000,
                                        ~0ULL,
                                        0x7FFF,
                                        0x8000};
    return rng() % 3 == 0 ? kEdges[rng() % std::size(kEdges)] : rng();
}

constexpr unsigned long long user_regs_struct::*kFields[16] = {
    &user_regs_struct::rax, &user_regs_struct::rcx, &user_regs_struct::rdx, &user_regs_struct::rbx,
    &user_regs_struct::rsp, &user_regs_struct::rbp, &user_regs_struct::rsi, &user_regs_struct::rdi,
    &user_regs_struct::r8,  &user_regs_struct::r9,  &user_regs_struct::r10, &user_regs_struct::r11,
    &user_regs_struct::r12, &user_regs_struct::r13, &user_regs_struct::r14, &user_regs_struct::r15};

/// Sets the registers that `mem` is made of so that it points into the data page. False where it can't.
bool aim(const probe::Operand& mem, std::uint64_t target, user_regs_struct& regs, Rng& rng) {
    if (mem.segment != probe::Operand::Segment::flat || mem.rip_relative) return false;
    if (mem.base == probe::Operand::kNoRegister) return false;
    std::uint64_t rest = target - static_cast<std::uint64_t>(mem.value);
    if (mem.index == mem.base) return false;
    if (mem.index != probe::Operand::kNoRegister) {
        regs.*kFields[mem.index] = rng() % 1024;
        if (mem.index == 4) return false;
        rest -= regs.*kFields[mem.index] * mem.scale;
    }
    regs.*kFields[mem.base] = rest;
    return true;
}

constexpr std::uint64_t kStatusFlags = 0x8D5;

}  // namespace

TEST_CASE("emulated instructions do what the processor does") {
    NativeProcessor native;
    if (!native.usable()) {
        MESSAGE("skipped: ptrace is not permitted here");
        return;
    }
    Rng rng(20240607);
    std::array<int, 64> tried{};
    int compared = 0;
    for (int round = 0; round < 120'000; ++round) {
        const auto bytes = random_instruction(rng);
        const auto instruction = probe::decode(bytes);
        if (!instruction) continue;
        user_regs_struct regs = native.first();
        for (const auto field : kFields) regs.*field = random_value(rng);
        regs.rsp = native.data_address() + 2048;
        regs.rbp = native.data_address() + 1024;
        regs.rip = native.code();
        regs.orig_rax = ~0ULL;
        regs.eflags = 0x202 | (rng() & kStatusFlags);
        for (std::size_t i = 0; i < NativeProcessor::kDataBytes; i += 8) {
            const std::uint64_t value =
                random_value(rng) & 0x00007FFFFFFFFFFF;  // canonical, should it be jumped to
            std::memcpy(native.data() + i, &value, 8);
        }
        bool reachable = true;
        for (const auto* operand : {&instruction->dst, &instruction->src}) {
            if (operand->kind == probe::Operand::Kind::mem && instruction->op != probe::Op::lea) {
                reachable = aim(*operand, native.data_address() + 512 + rng() % 1024, regs, rng);
            }
        }
        if (!reachable) continue;
        if (instruction->is_branch() && instruction->src.kind == probe::Operand::Kind::reg) {
            regs.*kFields[instruction->src.reg] &= 0x00007FFFFFFFFFFF;
        }
        const std::vector<std::byte> data_before(native.data(), native.data() + NativeProcessor::kDataBytes);
        user_regs_struct emulated = regs;
        const bool done = probe::emulate(*instruction, base::Address(native.code()), emulated, native);
        const std::vector<std::byte> data_emulated(native.data(),
                                                   native.data() + NativeProcessor::kDataBytes);
        std::memcpy(native.data(), data_before.data(), data_before.size());
        user_regs_struct real = regs;
        std::string text;
        for (std::size_t i = 0; i < instruction->length; ++i) {
            text += fmt::format("{:02x} ", std::to_integer<int>(bytes[i]));
        }
        INFO(text);
        if (!native.step(std::span(bytes).first(instruction->length), real)) {
            // pop or leave with a stack pointer that points nowhere, …: the emulation must have refused it
            // too
            CHECK_FALSE(done);
            continue;
        }
        if (!done && real.rip >> 47 != 0) continue;  // some processors fault in the branch, some behind it
        REQUIRE(done);
        for (std::size_t i = 0; i < 16; ++i) {
            INFO("register ", i);
            REQUIRE(emulated.*kFields[i] == real.*kFields[i]);
        }
        REQUIRE(emulated.rip == real.rip);
        std::uint64_t compared_flags =
            kStatusFlags & ~static_cast<std::uint64_t>(instruction->undefined_flags);
        REQUIRE((emulated.eflags & compared_flags) == (real.eflags & compared_flags));
        REQUIRE(std::memcmp(native.data(), data_emulated.data(), data_emulated.size()) == 0);
        ++tried[static_cast<std::size_t>(instruction->op)];
        ++compared;
    }
    MESSAGE(compared, " instructions compared");
    for (std::size_t op = 0; op <= static_cast<std::size_t>(probe::Op::sign_extend_pair); ++op) {
        INFO("operation ", op);
        CHECK(tried[op] > 20);
    }
}

TEST_CASE("a memory operand that can't be reached leaves everything as it was") {
    NoMemory memory;
    user_regs_struct regs{};
    regs.rsp = 64;
    for (const auto& bytes : {bytes_of({0x55}), bytes_of({0x5D}), bytes_of({0x48, 0x8B, 0x07}),
                              bytes_of({0xC3}), bytes_of({0xE8, 0, 0, 0, 0}), bytes_of({0x48, 0x01, 0x07})}) {
        const auto instruction = probe::decode(bytes);
        REQUIRE(instruction);
        user_regs_struct after = regs;
        CHECK_FALSE(probe::emulate(*instruction, base::Address(4096), after, memory));
        CHECK(std::memcmp(&after, &regs, sizeof regs) == 0);
    }
}

TEST_CASE("what isn't known is refused") {
    CHECK_FALSE(probe::decode({}));
    CHECK_FALSE(probe::decode(bytes_of({0x48})));
    CHECK_FALSE(probe::decode(bytes_of({0x48, 0x81, 0xEC, 1, 0})));        // cut short
    CHECK_FALSE(probe::decode(bytes_of({0xF0, 0x48, 0x01, 0x07})));        // lock
    CHECK_FALSE(probe::decode(bytes_of({0x0F, 0x05})));                    // syscall
    CHECK_FALSE(probe::decode(bytes_of({0xF3, 0x48, 0x0F, 0x1E, 0xC8})));  // rdsspq rax
    CHECK_FALSE(probe::decode(bytes_of({0x41, 0x90})));                    // xchg r8, rax
    CHECK_FALSE(probe::decode(bytes_of({0x67, 0x8B, 0x07})));              // 32-bit address
    CHECK_FALSE(probe::decode(bytes_of({0xCC})));
    CHECK_FALSE(probe::decode(bytes_of({0x0F, 0x28, 0xC1})));  // movaps
    CHECK_FALSE(probe::decode(bytes_of({0x66, 0xE9, 0, 0, 0, 0})));
    CHECK(probe::decode(bytes_of({0xF3, 0x0F, 0x1E, 0xFA}))->op == probe::Op::nop);        // endbr64
    CHECK(probe::decode(bytes_of({0xF2, 0xFF, 0x25, 0, 0, 0, 0}))->op == probe::Op::jmp);  // bnd jmp *[rip]
}

TEST_CASE("thread-local and rip-relative operands") {
    struct Recorder final : probe::OperandMemory {
        std::uint64_t asked = 0;
        bool load(std::uint64_t address, std::span<std::byte> out) override {
            asked = address;
            std::memset(out.data(), 0, out.size());
            return true;
        }
        bool store(std::uint64_t, std::span<const std::byte>) override { return false; }
    } memory;
    user_regs_struct regs{};
    regs.fs_base = 0x7000;
    // mov rax, fs:0x28 is how the stack protector begins
    const auto canary = probe::decode(bytes_of({0x64, 0x48, 0x8B, 0x04, 0x25, 0x28, 0, 0, 0}));
    REQUIRE(canary);
    REQUIRE(probe::emulate(*canary, base::Address(0x1000), regs, memory));
    CHECK(memory.asked == 0x7028);
    const auto got = probe::decode(bytes_of({0x48, 0x8B, 0x05, 0x10, 0, 0, 0}));
    REQUIRE(got);
    REQUIRE(probe::emulate(*got, base::Address(0x1000), regs, memory));
    CHECK(memory.asked == 0x1017);
}

TEST_CASE("the probe point of real entry sequences") {
    SUBCASE("the first instruction where it can be emulated") {
        const auto point = probe::choose_probe_point(bytes_of({0x41, 0x57, 0x41, 0x56, 0x55}));
        REQUIRE(point);
        CHECK(point->offset == 0);
        CHECK(point->return_slot_bytes == 0);
        CHECK(point->displaced->op == probe::Op::push);
        CHECK(point->original == std::byte{0x41});
    }
    SUBCASE("free: behind the null check") {  // endbr64; test rdi,rdi; je +0xb0; push r12
        const auto bytes =
            bytes_of({0xF3, 0x0F, 0x1E, 0xFA, 0x48, 0x85, 0xFF, 0x0F, 0x84, 0xB0, 0, 0, 0, 0x41, 0x54});
        const auto point = probe::choose_probe_point(bytes, true);
        REQUIRE(point);
        CHECK(point->offset == 13);
        CHECK(point->return_slot_bytes == 0);
        CHECK(point->displaced->op == probe::Op::push);
        CHECK(probe::choose_probe_point(bytes, false)->offset == 0);
    }
    SUBCASE("malloc: behind its pushes, before the frame is complete") {
        // push r12; push rbp; push rbx; mov rbx,rdi; sub rsp,16; cmp byte [rip+…],0
        const auto point = probe::choose_probe_point(bytes_of(
            {0x41, 0x54, 0x55, 0x53, 0x48, 0x89, 0xFB, 0x48, 0x83, 0xEC, 0x10, 0x80, 0x3D, 0, 0, 0, 0, 0}));
        REQUIRE(point);
        CHECK(point->offset == 4);
        CHECK(point->return_slot_bytes == 24);
        CHECK(point->displaced->op == probe::Op::mov);
        CHECK(point->original == std::byte{0x48});
    }
    SUBCASE("free: behind the null check and a push") {
        // test rdi,rdi; je +0xbf; push rbp; lea rsi,[rdi-16]; push rbx
        const auto bytes =
            bytes_of({0x48, 0x85, 0xFF, 0x0F, 0x84, 0xBF, 0, 0, 0, 0x55, 0x48, 0x8D, 0x77, 0xF0, 0x53});
        const auto point = probe::choose_probe_point(bytes, true);
        REQUIRE(point);
        CHECK(point->offset == 10);
        CHECK(point->return_slot_bytes == 8);
        CHECK(point->displaced->op == probe::Op::lea);
    }
    SUBCASE("what comes behind the pushes may be jumped to: the entry") {
        // push rbx; mov rbx,rdi; call …: the frame is complete at the mov
        CHECK(probe::choose_probe_point(bytes_of({0x53, 0x48, 0x89, 0xFB, 0xE8, 0, 0, 0, 0}))->offset == 0);
        // push rbx; mov eax,[rdi]; push rbp: reads memory
        CHECK(probe::choose_probe_point(bytes_of({0x53, 0x8B, 0x07, 0x55}))->offset == 0);
        // push rbx; mov rdi,rsi; push rbp: an argument is gone
        CHECK(probe::choose_probe_point(bytes_of({0x53, 0x48, 0x89, 0xF7, 0x55}))->offset == 0);
        // push rbx; pop rbx; push rbp
        CHECK(probe::choose_probe_point(bytes_of({0x53, 0x48, 0x89, 0xFB, 0x5B, 0x55}))->offset == 0);
    }
    SUBCASE("free with a frame made first") {  // sub rsp,8; test rdi,rdi; je +8; mov rax,[rip+…]
        const auto point = probe::choose_probe_point(
            bytes_of({0x48, 0x83, 0xEC, 8, 0x48, 0x85, 0xFF, 0x74, 8, 0x48, 0x8B, 5, 0, 0, 0, 0}), true);
        REQUIRE(point);
        CHECK(point->offset == 9);
        CHECK(point->return_slot_bytes == 8);
    }
    SUBCASE("no null check: the entry") {
        const auto point = probe::choose_probe_point(bytes_of({0x55, 0x48, 0x89, 0xE5, 0xC3}), true);
        REQUIRE(point);
        CHECK(point->offset == 0);
    }
    SUBCASE("not emulated: single step at the entry") {
        const auto point = probe::choose_probe_point(bytes_of({0x66, 0x0F, 0xEF, 0xC0, 0xC3}));
        REQUIRE(point);
        CHECK_FALSE(point->displaced);
    }
    SUBCASE("somebody else's breakpoint") {
        CHECK_FALSE(probe::choose_probe_point(bytes_of({0xCC, 0x48})));
    }
}
