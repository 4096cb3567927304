#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "memattach/probe/emulate.h"

namespace memattach::probe {

/// What /proc says of one task.
std::vector<pid_t> tasks_of(pid_t pid);
pid_t tracer_of(pid_t pid, pid_t tid);  ///< 0: nobody, or unknown
/// One system call, where reading /proc takes three: a thread storm waits for it at each thread.
bool is_thread_of(pid_t pid, pid_t tid);
char state_of(pid_t tid);  ///< 'R', 'S', 't' …; 0: gone
std::optional<int> last_cpu_of(pid_t pid, pid_t tid);

/// One line that says why process `pid` can't be traced, after `error`, and what would help.
[[noreturn]] void throw_not_permitted(pid_t pid, int error);

/// The memory of a thread in a ptrace stop, word by word.
class ThreadMemory final : public OperandMemory {
  public:
    explicit ThreadMemory(pid_t tid) : tid_(tid) {}
    bool load(std::uint64_t address, std::span<std::byte> out) override;
    bool store(std::uint64_t address, std::span<const std::byte> bytes) override;

  private:
    pid_t tid_;
};

}  // namespace memattach::probe
