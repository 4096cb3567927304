#pragma once

#include <sys/types.h>

#include <csignal>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace memattach::session {

/// A command that memattach started. It shares our terminal and process group, so that Ctrl-C reaches it as
/// it would alone.
class Command {
  public:
    /// Starts it with the signal mask `mask`. `before_exec` is called with its pid while it waits to execute
    /// the program. Throws base::Error where it can't be executed.
    Command(const std::vector<std::string>& arguments, const sigset_t& mask,
            const std::function<void(pid_t)>& before_exec = {});
    Command(const Command&) = delete;
    Command& operator=(const Command&) = delete;
    ~Command() = default;  // It is not killed: whoever started it decides how it ends.

    [[nodiscard]] pid_t pid() const { return pid_; }
    /// Its wait status once it has ended; doesn't wait.
    std::optional<int> poll_status();
    /// Waits for the end, passing on signals that were sent to us alone.
    int wait();

  private:
    pid_t pid_ = -1;
    std::optional<int> status_;
};

}  // namespace memattach::session
