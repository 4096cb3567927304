#pragma once

namespace memattach::session {

/// Lets this process run promptly while it lives: a stack that is read a millisecond after the clock that
/// asked for it belongs to another moment, and on a busy machine an ordinary process waits that long for a
/// CPU. What is allowed is taken: a better nice value where the user may have one, a short time slice on any
/// Linux from 6.12 on. The little that memattach computes makes this cheap for everybody else.
class SamplingPriority {
  public:
    explicit SamplingPriority(bool wanted);
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
