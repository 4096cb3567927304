#pragma once

#include <cmath>
#include <cstdint>

namespace memattach::probe {

/// Absolute deadlines at a fixed rate. They don't drift: tick n is due at start + n/rate, however late the
/// ones before were served. Ticks that passed while nobody looked are counted, not made up for.
class TickSchedule {
  public:
    TickSchedule(std::uint64_t start_ns, double rate_hz)
        : start_ns_(start_ns), period_ns_(1e9 / rate_hz), due_ns_(start_ns) {}

    [[nodiscard]] std::uint64_t due_ns() const { return due_ns_; }

    /// Serves the tick that is due and plans the next one after `now_ns`. Returns how many were skipped.
    std::uint64_t serve(std::uint64_t now_ns) {
        if (now_ns < due_ns_) return 0;
        const double passed = static_cast<double>(now_ns - start_ns_) / period_ns_;
        const auto next = static_cast<std::uint64_t>(std::floor(passed)) + 1;
        const std::uint64_t skipped = next > tick_ + 1 ? next - tick_ - 1 : 0;
        tick_ = next;
        due_ns_ = start_ns_ + static_cast<std::uint64_t>(static_cast<double>(tick_) * period_ns_);
        if (due_ns_ <= now_ns) due_ns_ = now_ns + 1;
        return skipped;
    }

  private:
    std::uint64_t start_ns_;
    double period_ns_;
    std::uint64_t tick_ = 0;
    std::uint64_t due_ns_;
};

}  // namespace memattach::probe
