#include <doctest/doctest.h>
#include <linux/perf_event.h>

#include <cstring>
#include <random>
#include <vector>

#include "memattach/probe/perf_record.h"
#include "memattach/probe/perf_ring.h"

using namespace memattach::probe;

namespace {

/// Puts a record together field by field.
class RecordBytes {
  public:
    RecordBytes(std::uint32_t type, std::uint16_t misc) {
        perf_event_header header{};
        header.type = type;
        header.misc = misc;
        put(header);
    }
    template <typename T>
    RecordBytes& put(const T& value) {
        // Not insert(): optimised, gcc 12 takes it for an overflow.
        const std::size_t at = bytes_.size();
        bytes_.resize(at + sizeof(T));
        std::memcpy(bytes_.data() + at, &value, sizeof(T));
        return *this;
    }
    std::vector<std::byte> done() {
        const auto size = static_cast<std::uint16_t>(bytes_.size());
        std::memcpy(bytes_.data() + offsetof(perf_event_header, size), &size, sizeof(size));
        return bytes_;
    }

  private:
    std::vector<std::byte> bytes_;
};

std::vector<std::byte> sample_bytes(std::uint64_t ip, std::uint16_t mode) {
    return RecordBytes(PERF_RECORD_SAMPLE, mode)
        .put(ip)
        .put<std::uint32_t>(10)
        .put<std::uint32_t>(11)
        .put<std::uint64_t>(123456)
        .put<std::uint64_t>(777)
        .done();
}

}  // namespace

TEST_CASE("a sample says where the thread was, and in which mode") {
    const auto record = parse_record(sample_bytes(0x401000, PERF_RECORD_MISC_USER), {});
    REQUIRE(record);
    const auto& sample = std::get<PerfSample>(*record);
    CHECK(sample.ip == 0x401000);
    CHECK(sample.pid == 10);
    CHECK(sample.tid == 11);
    CHECK(sample.time_ns == 123456);
    CHECK(sample.cpu_ns == 777);
    CHECK_FALSE(sample.kernel_mode);
    CHECK(std::get<PerfSample>(*parse_record(sample_bytes(1, PERF_RECORD_MISC_KERNEL), {})).kernel_mode);
}

TEST_CASE("a sample with registers and stack") {
    RecordBytes bytes(PERF_RECORD_SAMPLE, PERF_RECORD_MISC_USER);
    bytes.put<std::uint64_t>(1).put<std::uint64_t>(2).put<std::uint64_t>(3).put<std::uint64_t>(4);
    bytes.put<std::uint64_t>(PERF_SAMPLE_REGS_ABI_64);
    for (std::uint64_t i = 0; i < kPerfRegisterCount; ++i) bytes.put(i + 100);
    bytes.put<std::uint64_t>(16).put<std::uint64_t>(0x1111).put<std::uint64_t>(0x2222).put<std::uint64_t>(8);
    const RecordFormat format{true, true};
    const auto whole = bytes.done();
    const auto record = parse_record(whole, format);
    REQUIRE(record);
    const auto& sample = std::get<PerfSample>(*record);
    CHECK(sample.has_registers);
    CHECK(sample.registers[kPerfRegisterSp] == 107);
    CHECK(sample.registers[kPerfRegisterIp] == 108);
    CHECK(sample.stack.size() == 8);

    SUBCASE("cut anywhere it is refused, never read past") {
        for (std::size_t size = 0; size < whole.size(); ++size) {
            std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
            if (size >= sizeof(perf_event_header)) {
                const auto length = static_cast<std::uint16_t>(size);
                std::memcpy(cut.data() + offsetof(perf_event_header, size), &length, sizeof(length));
            }
            CHECK_FALSE(parse_record(cut, format));
        }
    }
    SUBCASE("a kernel thread has no registers and no stack") {
        RecordBytes none(PERF_RECORD_SAMPLE, PERF_RECORD_MISC_KERNEL);
        none.put<std::uint64_t>(1).put<std::uint64_t>(2).put<std::uint64_t>(3).put<std::uint64_t>(4);
        none.put<std::uint64_t>(PERF_SAMPLE_REGS_ABI_NONE).put<std::uint64_t>(0);
        const auto empty = parse_record(none.done(), format);
        REQUIRE(empty);
        CHECK_FALSE(std::get<PerfSample>(*empty).has_registers);
        CHECK(std::get<PerfSample>(*empty).stack.empty());
    }
    SUBCASE("a stack that claims to be longer than its record") {
        RecordBytes forged(PERF_RECORD_SAMPLE, PERF_RECORD_MISC_USER);
        forged.put<std::uint64_t>(1).put<std::uint64_t>(2).put<std::uint64_t>(3).put<std::uint64_t>(4);
        forged.put<std::uint64_t>(PERF_SAMPLE_REGS_ABI_NONE).put<std::uint64_t>(~0ULL).put<std::uint64_t>(8);
        CHECK_FALSE(parse_record(forged.done(), format));
    }
}

TEST_CASE("switches, forks, exits, execs and losses") {
    const auto out = RecordBytes(PERF_RECORD_SWITCH, PERF_RECORD_MISC_SWITCH_OUT)
                         .put<std::uint32_t>(10)
                         .put<std::uint32_t>(11)
                         .put<std::uint64_t>(55)
                         .done();
    const auto record = parse_record(out, {});
    REQUIRE(record);
    CHECK(std::get<PerfSwitch>(*record).out);
    CHECK(std::get<PerfSwitch>(*record).tid == 11);
    CHECK(std::get<PerfSwitch>(*record).time_ns == 55);

    const auto task = [](std::uint32_t type) {
        return RecordBytes(type, 0)
            .put<std::uint32_t>(20)
            .put<std::uint32_t>(10)
            .put<std::uint32_t>(21)
            .put<std::uint32_t>(11)
            .put<std::uint64_t>(66)
            .put<std::uint64_t>(0)
            .put<std::uint64_t>(0)
            .done();
    };
    const auto fork = std::get<PerfFork>(*parse_record(task(PERF_RECORD_FORK), {}));
    CHECK(fork.pid == 20);
    CHECK(fork.parent_pid == 10);
    CHECK(fork.tid == 21);
    CHECK(std::get<PerfExit>(*parse_record(task(PERF_RECORD_EXIT), {})).tid == 21);

    const auto comm = RecordBytes(PERF_RECORD_COMM, PERF_RECORD_MISC_COMM_EXEC)
                          .put<std::uint32_t>(10)
                          .put<std::uint32_t>(11)
                          .put<std::uint64_t>(0)
                          .done();
    CHECK(std::get<PerfComm>(*parse_record(comm, {})).exec);
    const auto lost = RecordBytes(PERF_RECORD_LOST, 0).put<std::uint64_t>(1).put<std::uint64_t>(99).done();
    CHECK(std::get<PerfLost>(*parse_record(lost, {})).count == 99);
    CHECK(std::holds_alternative<PerfOther>(*parse_record(RecordBytes(4711, 0).done(), {})));
}

TEST_CASE("a ring is cut into its records, also around its end") {
    std::vector<std::byte> ring(256);
    const auto record = sample_bytes(7, PERF_RECORD_MISC_USER);
    // Write position by position so that a record starts at every possible place in the ring.
    std::uint64_t head = 0, tail = 0;
    for (int i = 0; i < 1000; ++i) {
        for (const std::byte byte : record) ring[head++ % ring.size()] = byte;
        RingCursor cursor(ring, head, tail);
        const auto bytes = cursor.next();
        REQUIRE(bytes.size() == record.size());
        CHECK(std::memcmp(bytes.data(), record.data(), record.size()) == 0);
        CHECK(cursor.next().empty());
        CHECK_FALSE(cursor.corrupt());
        tail = cursor.tail();
        CHECK(tail == head);
    }
}

TEST_CASE("a ring full of nonsense ends the reading, and says so") {
    std::mt19937 random(1);
    for (int round = 0; round < 5000; ++round) {
        std::vector<std::byte> ring(128);
        for (std::byte& byte : ring) byte = static_cast<std::byte>(random() & (round % 2 == 0 ? 0xFF : 0x0F));
        const std::uint64_t tail = random();
        const std::uint64_t head = tail + random() % 200;
        RingCursor cursor(ring, head, tail);
        int steps = 0;
        for (auto bytes = cursor.next(); !bytes.empty(); bytes = cursor.next()) {
            static_cast<void>(parse_record(bytes, {true, true}));
            REQUIRE(++steps <= 16);  // 128 bytes hold no more records than that
        }
        CHECK(cursor.tail() == head);
    }
}
