/// Stops one thread for some microseconds: what --blocking does for each sample, and --native where perf
/// doesn't give the registers.
///
///     BriefStops stops;
///     if (stops.stop(tid, registers) == StopResult::stopped) { … read …; stops.release(); }
///
/// Nothing of it outlives release(): a signal that arrives meanwhile is passed on, a thread that SIGSTOP
/// holds goes on being held, and if memattach dies the kernel itself detaches (ptrace(2), "Death of tracer").
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memattach/probe/perf_record.h"

namespace memattach::probe {

enum class StopResult : std::uint8_t {
    stopped,
    gone,
    refused,  ///< not permitted, or somebody else traces it; see last_error()
    late,  ///< it didn't come to a stop in time (it sleeps uninterruptibly); it is let go as soon as it does
};

struct StoppedRegisters {
    std::array<std::uint64_t, kPerfRegisterCount> values{};  ///< in perf's order
    bool in_system_call = false;
};

class BriefStops {
  public:
    BriefStops() = default;
    BriefStops(const BriefStops&) = delete;
    BriefStops& operator=(const BriefStops&) = delete;
    ~BriefStops();

    StopResult stop(int tid, StoppedRegisters& registers);
    /// Lets the stopped thread go. Called by stop() and the destructor where it was forgotten.
    void release();
    /// Threads that came late may be standing by now: call this soon again while there are any.
    void let_late_go() { retry_late(); }
    [[nodiscard]] bool has_late() const { return !late_.empty(); }

    [[nodiscard]] int last_error() const { return error_; }
    [[nodiscard]] std::uint64_t total_ns() const { return total_ns_; }
    [[nodiscard]] std::uint64_t longest_ns() const { return longest_ns_; }

  private:
    bool take_stop(int tid, int& signal);
    void let_go(int tid, int signal);
    void retry_late();

    int tid_ = 0;     ///< held now
    int signal_ = 0;  ///< to be passed on
    std::uint64_t since_ns_ = 0;
    std::vector<int> late_;
    int error_ = 0;
    std::uint64_t total_ns_ = 0, longest_ns_ = 0;
};

}  // namespace memattach::probe
