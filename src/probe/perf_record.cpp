#include "memattach/probe/perf_record.h"

#include <linux/perf_event.h>

#include "memattach/base/bytes.h"

namespace memattach::probe {
namespace {

using base::ByteCursor;

/// Every record but samples ends in the sample_id of sample_id_all: here {u32 pid, tid; u64 time}.
std::optional<std::uint64_t> trailing_time(std::span<const std::byte> bytes) {
    if (bytes.size() < sizeof(perf_event_header) + 16) return std::nullopt;
    return base::read_at<std::uint64_t>(bytes, bytes.size() - 8);
}

std::optional<std::int32_t> trailing_tid(std::span<const std::byte> bytes) {
    if (bytes.size() < sizeof(perf_event_header) + 16) return std::nullopt;
    return base::read_at<std::int32_t>(bytes, bytes.size() - 12);
}

std::optional<PerfRecord> parse_sample(ByteCursor cursor, std::span<const std::byte> bytes,
                                       std::uint16_t misc, const RecordFormat& format) {
    PerfSample sample;
    const auto ip = cursor.read<std::uint64_t>();
    const auto pid = cursor.read<std::int32_t>();
    const auto tid = cursor.read<std::int32_t>();
    const auto time = cursor.read<std::uint64_t>();
    const auto cpu_ns = cursor.read<std::uint64_t>();
    if (!ip || !pid || !tid || !time || !cpu_ns) return std::nullopt;
    sample.ip = *ip;
    sample.pid = *pid;
    sample.tid = *tid;
    sample.time_ns = *time;
    sample.cpu_ns = *cpu_ns;
    sample.kernel_mode = (misc & PERF_RECORD_MISC_CPUMODE_MASK) == PERF_RECORD_MISC_KERNEL;
    if (format.user_registers) {
        const auto abi = cursor.read<std::uint64_t>();
        if (!abi) return std::nullopt;
        if (*abi != PERF_SAMPLE_REGS_ABI_NONE) {
            for (std::uint64_t& reg : sample.registers) {
                const auto value = cursor.read<std::uint64_t>();
                if (!value) return std::nullopt;
                reg = *value;
            }
            // A 32-bit caller's registers mean nothing to a 64-bit unwinder.
            sample.has_registers = *abi == PERF_SAMPLE_REGS_ABI_64;
        }
    }
    if (format.user_stack) {
        const auto room = cursor.read<std::uint64_t>();
        if (!room) return std::nullopt;
        if (*room > 0) {
            const std::size_t start = cursor.offset();
            if (*room > cursor.remaining() || !cursor.skip(static_cast<std::size_t>(*room)))
                return std::nullopt;
            const auto used = cursor.read<std::uint64_t>();
            if (!used || *used > *room) return std::nullopt;
            sample.stack = bytes.subspan(start, static_cast<std::size_t>(*used));
        }
    }
    return sample;
}

std::optional<PerfRecord> parse_task(ByteCursor cursor, bool fork) {
    // struct { u32 pid, ppid, tid, ptid; u64 time; } for both
    const auto pid = cursor.read<std::int32_t>();
    const auto parent_pid = cursor.read<std::int32_t>();
    const auto tid = cursor.read<std::int32_t>();
    const auto parent_tid = cursor.read<std::int32_t>();
    const auto time = cursor.read<std::uint64_t>();
    if (!pid || !parent_pid || !tid || !parent_tid || !time) return std::nullopt;
    if (!fork) return PerfExit{*pid, *tid};
    return PerfFork{*time, *pid, *parent_pid, *tid, *parent_tid};
}

}  // namespace

std::optional<PerfRecord> parse_record(std::span<const std::byte> bytes, const RecordFormat& format) {
    ByteCursor cursor(bytes);
    const auto header = cursor.read<perf_event_header>();
    if (!header || header->size < sizeof(perf_event_header) || header->size > bytes.size())
        return std::nullopt;
    bytes = bytes.first(header->size);
    ByteCursor body(bytes);
    if (!body.skip(sizeof(perf_event_header))) return std::nullopt;
    switch (header->type) {
        case PERF_RECORD_SAMPLE:
            return parse_sample(body, bytes, header->misc, format);
        case PERF_RECORD_FORK:
            return parse_task(body, true);
        case PERF_RECORD_EXIT:
            return parse_task(body, false);
        case PERF_RECORD_SWITCH: {
            const auto time = trailing_time(bytes);
            const auto tid = trailing_tid(bytes);
            if (!time || !tid) return std::nullopt;
            return PerfSwitch{*time, *tid, (header->misc & PERF_RECORD_MISC_SWITCH_OUT) != 0,
                              (header->misc & PERF_RECORD_MISC_SWITCH_OUT_PREEMPT) != 0};
        }
        case PERF_RECORD_COMM: {
            const auto pid = body.read<std::int32_t>();
            const auto tid = body.read<std::int32_t>();
            if (!pid || !tid) return std::nullopt;
            return PerfComm{*pid, *tid, (header->misc & PERF_RECORD_MISC_COMM_EXEC) != 0};
        }
        case PERF_RECORD_LOST: {
            const auto id = body.read<std::uint64_t>();
            const auto count = body.read<std::uint64_t>();
            if (!id || !count) return std::nullopt;
            return PerfLost{*count};
        }
        default:
            return PerfOther{};
    }
}

}  // namespace memattach::probe
