#pragma once

#include <string>

#include "memattach/profile/profile.h"

namespace memattach::report {

/// A file for https://www.speedscope.app (its file-format-schema.json): one sampled profile for each metric
/// that there is anything of (and each process and thread, where they are told apart), in seconds of CPU time
/// or bytes.
[[nodiscard]] std::string to_speedscope(const profile::Profile& profile);

}  // namespace memattach::report
