/// The kernel's own account of a thread: is it running, what is it called.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/base/unique_fd.h"

namespace memattach::probe {

/// What /proc/PID/task/TID/syscall says.
struct SyscallState {
    bool running = false;  ///< on a CPU or waiting for one
    std::int64_t number =
        -1;  ///< else the system call that it sleeps in; −1: none (stopped, or a page fault)
    std::uint64_t sp = 0, pc = 0;
};
std::optional<SyscallState> parse_syscall(std::string_view text);

/// One thread's files below /proc, kept open: a look is one pread of about a microsecond.
class TaskFiles {
  public:
    TaskFiles(int pid, int tid) : pid_(pid), tid_(tid) {}

    /// Running or runnable right now; nothing where the thread is gone.
    [[nodiscard]] std::optional<bool> is_running();
    /// CPU time that it has used, for a running thread as of the last scheduler tick.
    [[nodiscard]] std::optional<std::uint64_t> burned_ns();
    [[nodiscard]] std::string name() const;

  private:
    int pid_, tid_;
    base::UniqueFd syscall_, stat_, schedstat_;
    bool use_stat_ = false;
};

/// The processes that any thread of `pid` has started and that still are its children.
std::vector<int> list_children(int pid);

}  // namespace memattach::probe
