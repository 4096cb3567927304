#pragma once

#include <functional>

#include "memattach/base/error.h"
#include "memattach/profile/profile.h"
#include "memattach/session/options.h"

namespace memattach::session {

struct Outcome {
    profile::Profile profile;
    base::ExitCode code = base::ExitCode::done;
    int signal = 0;                   ///< the signal that ended the session, else 0
    std::optional<int> child_status;  ///< a started command's own wait status, where it has ended
    int command_pid = 0;  ///< a started command that still runs, for the caller to wait for; else 0
};

/// Called about ten times a second with the time gone by, for a progress line.
struct Progress {
    double elapsed_s = 0;
    std::uint64_t cpu_samples = 0;
    std::uint64_t allocations = 0;
};
using ProgressFunction = std::function<void(const Progress&)>;

/// Profiles until the duration is over, a signal (SIGINT, SIGTERM, SIGHUP) arrives or the target ends. Throws
/// base::Error where the target can't be profiled. Nothing of the target is changed when it returns, however
/// it returns.
Outcome run(const Options& options, const ProgressFunction& progress);

}  // namespace memattach::session
