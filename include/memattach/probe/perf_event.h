/// A perf software event that follows one thread's CPU clock. It interrupts the thread every so often of its
/// *own CPU time*, notes where it was, and wakes memattach: a thread that sleeps costs nothing, and the
/// samples are evenly spread over what the thread burned. No privilege is needed for processes of the same
/// user while perf_event_paranoid is at most 2 (kernel documentation, admin-guide/sysctl/kernel.rst); at 2
/// the kernel side stays hidden.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/perf_record.h"
#include "memattach/probe/perf_ring.h"

namespace memattach::probe {

struct PerfOptions {
    std::uint64_t period_ns = 10'000'000;  ///< of CPU time; the kernel's floor is 10 µs; 0: no samples
    bool wake = true;                      ///< the descriptor becomes readable with every record
    bool tasks = true;                     ///< PerfFork, PerfExit and PerfComm records
    bool switches = false;                 ///< PerfSwitch records: on and off the CPU, exactly
    bool exclude_kernel = false;
    /// 0: none; else registers and that many bytes of stack with each sample (a multiple of 8, below 64 KB).
    std::uint32_t user_stack_bytes = 0;
    std::size_t ring_pages = 1;  ///< a power of two
};

/// Owns the event and its ring.
class PerfEvent {
  public:
    PerfEvent() = default;
    PerfEvent(PerfEvent&& other) noexcept;
    PerfEvent& operator=(PerfEvent&& other) noexcept;
    PerfEvent(const PerfEvent&) = delete;
    PerfEvent& operator=(const PerfEvent&) = delete;
    ~PerfEvent();

    /// Opens it on thread `tid`. On failure the event is closed and the errno is returned; 0 is success.
    [[nodiscard]] int open(int tid, const PerfOptions& options);
    void close();

    /// The next sample is due `period_ns` of CPU time from now, and those after it at that distance.
    /// Interrupts the thread's CPU where it runs.
    void set_period(std::uint64_t period_ns);

    [[nodiscard]] bool is_open() const { return fd_.is_open(); }
    [[nodiscard]] int fd() const { return fd_.get(); }
    /// CPU time since it was opened, exact. Interrupts the thread's CPU where it runs (some 10 µs for us).
    [[nodiscard]] std::optional<std::uint64_t> read_cpu_ns() const;

    /// Calls `use(PerfRecord&)` for every record that has arrived. Returns how many were lost or unreadable.
    template <typename Use>
    std::uint64_t drain(Use&& use) {
        if (page_ == nullptr) return 0;
        const std::uint64_t head = load_head();
        RingCursor cursor(ring(), head, load_tail());
        std::uint64_t lost = 0;
        for (auto bytes = cursor.next(); !bytes.empty(); bytes = cursor.next()) {
            auto record = parse_record(bytes, format_);
            if (!record) {
                ++lost;
                continue;
            }
            if (const auto* missing = std::get_if<PerfLost>(&*record)) lost += missing->count;
            use(*record);
        }
        if (cursor.corrupt()) ++lost;
        store_tail(cursor.tail());
        return lost;
    }
    [[nodiscard]] bool has_records() const { return page_ != nullptr && load_head() != load_tail(); }

  private:
    [[nodiscard]] std::uint64_t load_head() const;
    [[nodiscard]] std::uint64_t load_tail() const;
    void store_tail(std::uint64_t tail);
    [[nodiscard]] std::span<const std::byte> ring() const;

    base::UniqueFd fd_;
    void* page_ = nullptr;
    std::size_t mapped_bytes_ = 0;
    RecordFormat format_;
};

/// Whether and how perf may be used on this machine by this user for `tid`.
struct PerfAccess {
    bool allowed = false;
    bool kernel_visible = false;  ///< else exclude_kernel must be set
    std::string why_not;          ///< one clause, with the sysctl's value or what else forbids it
};
PerfAccess probe_perf(int tid);

}  // namespace memattach::probe
