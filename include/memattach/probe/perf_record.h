/// The kernel's perf records as values. Parsing takes bytes only, so it is tested and fuzzed without a
/// kernel.
///
///     const RecordFormat format{.user_registers = 0, .user_stack_bytes = 0};
///     parse_record(bytes, format) -> PerfSample{ip, tid, time_ns, kernel_mode, cpu_ns}
///
/// The layouts are those of perf_event_open(2) for the attributes that perf_event.h sets, and no others:
/// sample_type = IP | TID | TIME | READ (| REGS_USER | STACK_USER), read_format = 0, sample_id_all = 1.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>

namespace memattach::probe {

/// x86-64 registers of the kernel's `enum perf_event_x86_regs`, in the order in which a record carries them.
inline constexpr std::uint64_t kPerfRegisterMask = 0xff0fff;  // AX..SP, IP, FLAGS, CS, SS, R8..R15
inline constexpr std::size_t kPerfRegisterCount = 20;
inline constexpr std::size_t kPerfRegisterSp = 7;
inline constexpr std::size_t kPerfRegisterIp = 8;

struct RecordFormat {
    bool user_registers = false;
    bool user_stack = false;
};

/// The thread used up one more sampling period of CPU time.
struct PerfSample {
    std::uint64_t ip = 0;
    std::int32_t pid = 0;
    std::int32_t tid = 0;
    std::uint64_t time_ns = 0;  ///< CLOCK_MONOTONIC
    std::uint64_t cpu_ns = 0;   ///< CPU time of the thread since the event was opened
    bool kernel_mode = false;
    /// User registers at the time, where asked for and where the thread has a user side; and the first bytes
    /// of its stack, from the stack pointer up. They point into the record.
    bool has_registers = false;
    std::array<std::uint64_t, kPerfRegisterCount> registers{};
    std::span<const std::byte> stack;
};

struct PerfSwitch {
    std::uint64_t time_ns = 0;
    std::int32_t tid = 0;
    bool out = false;
    bool preempted = false;  ///< out, though it wanted to go on
};

/// A thread (pid == parent_pid) or a process was made by `parent_tid`.
struct PerfFork {
    std::uint64_t time_ns = 0;
    std::int32_t pid = 0, parent_pid = 0, tid = 0, parent_tid = 0;
};

struct PerfExit {
    std::int32_t pid = 0, tid = 0;
};

struct PerfComm {
    std::int32_t pid = 0, tid = 0;
    bool exec = false;
};

struct PerfLost {
    std::uint64_t count = 0;
};

/// A kind that nobody here asked for; skipped.
struct PerfOther {};

using PerfRecord = std::variant<PerfOther, PerfSample, PerfSwitch, PerfFork, PerfExit, PerfComm, PerfLost>;

/// One whole record, header included. Nothing where the bytes are too short for what the header says.
std::optional<PerfRecord> parse_record(std::span<const std::byte> bytes, const RecordFormat& format);

}  // namespace memattach::probe
