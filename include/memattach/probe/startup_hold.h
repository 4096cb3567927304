#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "memattach/base/unique_fd.h"

namespace memattach::probe {

/// Holds a command that memattach starts at the moment when its interpreter is ready and no line of the
/// program has run, so that a profile begins with the first line.
///
///     exec → (dynamic linker) → the program's entry: everything is mapped; if there is a Py_RunMain …
///          → (Py_Initialize…) → Py_RunMain: held, by SIGSTOP and no longer traced
///          → release(): SIGCONT
///
/// A program without Py_RunMain runs on and is watched for its next exec only. Until held, the command is
/// traced by the calling thread, all of whose calls must come from that thread, and dies with it.
class StartupHold {
  public:
    enum class State : std::uint8_t {
        waiting,
        held,  ///< stopped at Py_RunMain
        off,   ///< ended, released, or not to be held
    };

    /// `pid`: a child that waits before its exec. Where it can't be traced, nothing is held.
    explicit StartupHold(pid_t pid);
    ~StartupHold();
    StartupHold(const StartupHold&) = delete;
    StartupHold& operator=(const StartupHold&) = delete;

    /// Serves what has happened since; doesn't wait. While this returns State::waiting, nobody else may wait
    /// for the process. Its end is left to be waited for by its starter.
    State step();
    /// Lets the command go on, wherever it is. May be called twice.
    void release();

  private:
    enum class Next : std::uint8_t { exec, entry, run_main };

    void handle_stop(int status);
    bool at_breakpoint();
    void break_at(std::uint64_t address, Next next);
    void clear_breakpoint();
    [[nodiscard]] std::optional<std::uint64_t> find_run_main() const;

    pid_t pid_;
    State state_ = State::off;
    Next next_ = Next::exec;
    base::UniqueFd memory_;
    std::uint64_t address_ = 0;  ///< of the breakpoint; 0: none
    std::uint64_t original_ = 0;
    std::uint64_t last_address_ = 0;  ///< of the latest one, also when it is gone
};

}  // namespace memattach::probe
