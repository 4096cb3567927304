#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

namespace memattach::probe {

/// Numbers to spread sampling times with (splitmix64): small and quick, the same in every run.
class SmallRandom {
  public:
    explicit SmallRandom(std::uint64_t seed = 1) : state_(seed) {}
    /// In [0, 1).
    double uniform() {
        std::uint64_t x = (state_ += 0x9E3779B97F4A7C15ULL);
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
        return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
    }

  private:
    std::uint64_t state_;
};

/// Absolute deadlines at a fixed rate. They don't drift: tick n is due within the n-th period since
/// `start_ns`, however late the ones before were served. Ticks that passed while nobody looked are counted,
/// not made up for.
///
/// With `jitter`, each is due at a random time within its period: what the target does in step with the rate
/// is then neither always seen nor always missed. The time depends on n alone: schedules with the same start
/// are due at the same times, and are served by the same wake-up.
class TickSchedule {
  public:
    /// The first deadline is at `first_ns`, or with `jitter` the first one after it.
    TickSchedule(std::uint64_t start_ns, double rate_hz, bool jitter, std::uint64_t first_ns)
        : start_ns_(start_ns), period_ns_(1e9 / rate_hz), jitter_(jitter), tick_(period_of(first_ns)) {
        due_ns_ = jitter ? due_of(tick_) : first_ns;
        if (due_ns_ < first_ns) due_ns_ = due_of(++tick_);
    }
    TickSchedule(std::uint64_t start_ns, double rate_hz, bool jitter = false)
        : TickSchedule(start_ns, rate_hz, jitter, start_ns) {}

    [[nodiscard]] std::uint64_t due_ns() const { return due_ns_; }

    /// Serves the tick that is due and plans the next one after `now_ns`. Returns how many were skipped.
    std::uint64_t serve(std::uint64_t now_ns) {
        if (now_ns < due_ns_) return 0;
        std::uint64_t next = std::max(tick_ + 1, period_of(now_ns));
        while (due_of(next) <= now_ns) ++next;
        const std::uint64_t skipped = next - tick_ - 1;
        tick_ = next;
        due_ns_ = due_of(next);
        return skipped;
    }

  private:
    [[nodiscard]] std::uint64_t period_of(std::uint64_t at_ns) const {
        return static_cast<std::uint64_t>(std::floor(static_cast<double>(at_ns - start_ns_) / period_ns_));
    }
    [[nodiscard]] std::uint64_t due_of(std::uint64_t tick) const {
        const double within = jitter_ ? SmallRandom(tick).uniform() : 0;
        return start_ns_ + static_cast<std::uint64_t>((static_cast<double>(tick) + within) * period_ns_);
    }

    std::uint64_t start_ns_;
    double period_ns_;
    bool jitter_;
    std::uint64_t tick_;
    std::uint64_t due_ns_ = 0;
};

/// Keeps the samples that ticks take of one thread in proportion to the CPU time that it burns. "Running"
/// alone includes the time that it waits for a CPU; its stack then is where it was when it last had one.
///
/// A thread that always gets a CPU is met running as often as it burns, but on average only: samples may be
/// some ahead of what was burned, or of threads that run for moments half would be dropped. They must not
/// catch up in a row on moments that fell between ticks, either.
class SampleAllowance {
  public:
    /// Whether a sample that stands for `period_ns` may be taken of the thread, which has burned `burned_ns`
    /// in all.
    bool take(std::uint64_t burned_ns, std::uint64_t period_ns) {
        const auto period = static_cast<double>(period_ns);
        const std::uint64_t since = burned_ns - std::min(burned_ns, burned_before_ns_.value_or(burned_ns));
        burned_before_ns_ = burned_ns;
        // A running thread's CPU time moves with the kernel's ticks, which are up to 10 ms apart.
        constexpr double kTickNs = 10e6;
        uncharged_ns_ =
            std::min(uncharged_ns_ + static_cast<double>(since), std::max(8 * period, 2 * kTickNs));
        if (uncharged_ns_ - period < -std::max(4 * period, kTickNs)) return false;
        uncharged_ns_ -= period;
        return true;
    }

  private:
    std::optional<std::uint64_t> burned_before_ns_;
    double uncharged_ns_ = 0;  ///< of its CPU time, what no sample stands for yet; negative: they are ahead
};

}  // namespace memattach::probe
