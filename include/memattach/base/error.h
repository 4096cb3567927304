#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace memattach::base {

/// Exit codes of the program; see the README. An Error carries the one that it should end in.
enum class ExitCode : int {
    done = 0,
    check_failed = 1,
    unusable = 2,     ///< usage, or the target can't be profiled
    target_lost = 3,  ///< the target went away midway; what had been gathered was written
};

/// What makes going on pointless. The message is one line: what failed, on what, and what the user can do.
/// What is bound to happen now and then (a torn frame, a thread that is gone) is not an Error but a value.
class Error : public std::runtime_error {
  public:
    explicit Error(const std::string& message, ExitCode code = ExitCode::unusable)
        : std::runtime_error(message), code_(code) {}

    [[nodiscard]] ExitCode code() const { return code_; }

  private:
    ExitCode code_;
};

/// `throw_error("no process {}", pid)`
template <typename... Args>
[[noreturn]] void throw_error(fmt::format_string<Args...> format, Args&&... args) {
    throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// "Permission denied" for EACCES and so on; thread-safe.
std::string errno_text(int error);

}  // namespace memattach::base
