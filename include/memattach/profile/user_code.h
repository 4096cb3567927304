#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/trace/frame.h"

namespace memattach::profile {

/// True where `file` (as a code object has it) belongs to whoever wrote the program rather than to the
/// standard library, an installed package or the interpreter. Told from the path alone:
///
///     /srv/app/jobs.py, jobs.py, <string>, <stdin>, <ipython-input-3-…>       the user's
///     …/lib/python3.11/json/decoder.py, …/python311.zip/…                     the standard library
///     …/site-packages/…, …/dist-packages/…, …/.egg/…                          installed packages
///     <frozen importlib._bootstrap>, <__array_function__ internals>, ""       nobody's file
[[nodiscard]] bool is_user_file(std::string_view file);

/// Which frame of a stack a sample is charged to. See is_user_file; `--profile-only` narrows the user's code
/// to what it names, `--profile-exclude` takes away from it, `--profile-all` charges the innermost frame.
class Charging {
  public:
    Charging(const trace::FunctionTable& functions, bool all, std::vector<std::string> only,
             std::vector<std::string> exclude);

    /// Index into `stack` of the frame to charge: the innermost one of the user's code, or the innermost of
    /// all where there is none. Nothing for an empty stack, and where `--profile-only` or `--profile-exclude`
    /// leave no frame of it.
    [[nodiscard]] std::optional<std::size_t> charged(const trace::Stack& stack) const;

    [[nodiscard]] bool is_user(trace::FunctionId function) const;

  private:
    [[nodiscard]] bool passes_filters(const trace::Function& function) const;
    enum class Verdict : std::uint8_t { unknown, filtered, library, user };
    [[nodiscard]] Verdict verdict(trace::FunctionId function) const;

    const trace::FunctionTable& functions_;
    bool all_;
    std::vector<std::string> only_, exclude_;
    mutable std::vector<Verdict> verdicts_;  ///< a cache, by FunctionId
};

}  // namespace memattach::profile
