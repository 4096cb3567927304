#pragma once

#include <cstdint>

namespace memattach::session {

enum class Promptness : std::uint8_t {
    ordinary,   ///< spins between samples: no precedence over anybody
    preferred,  ///< a nice value, where the user may have one, and a short time slice (Linux 6.12)
    real_time,  ///< the lowest real-time priority where that is allowed, else as `preferred`
};

/// Lets this process run promptly while it lives: a stack that is read a millisecond after the clock that
/// asked for it belongs to another moment, and on a busy machine an ordinary process waits that long for a
/// CPU.
///
/// Real time is for a session that does nothing but sample: it computes little and sleeps in between. One
/// that also accounts allocations may have much to compute, and must not do it ahead of the target.
class SamplingPriority {
  public:
    explicit SamplingPriority(Promptness wanted);
    ~SamplingPriority();
    SamplingPriority(const SamplingPriority&) = delete;
    SamplingPriority& operator=(const SamplingPriority&) = delete;

    void end();

    /// For a forked child: what it executes must not inherit any of this.
    static void give_up();

  private:
    bool changed_ = false;
};

}  // namespace memattach::session
