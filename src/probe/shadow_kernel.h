#pragma once

#include <sys/user.h>

#include <cstdint>
#include <optional>

namespace memattach::probe {

/// Answers those of a shadow's system calls that an allocation leads to, and some that come often and have
/// one likely answer, without carrying them out: the shadow has room for its heap to grow already
/// (ShadowSpace), and what it gives back may stay.
class ShadowKernel {
  public:
    /// What getpid() says in the target; 0: unknown.
    void set_pid(int pid) { pid_ = pid; }
    /// [start, end): where new mappings go.
    void set_arena(std::uint64_t start, std::uint64_t end) {
        arena_start_ = start;
        arena_end_ = end;
    }
    /// A state is run from its beginning.
    void restart() {
        next_ = arena_start_;
        heap_end_ = 0;
        calls_ = 0;
    }
    /// The call that the thread is stopped at the entry of; nothing where the run ends with it.
    std::optional<std::uint64_t> answer(const user_regs_struct& registers);
    /// Memory that was given out in this run, and so holds zeros where the target has nothing.
    [[nodiscard]] bool has_given(std::uint64_t page) const;
    [[nodiscard]] std::uint64_t calls() const { return calls_; }

  private:
    std::uint64_t arena_start_ = 0, arena_end_ = 0, next_ = 0, heap_end_ = 0;
    std::uint64_t calls_ = 0;
    int pid_ = 0;
};

}  // namespace memattach::probe
