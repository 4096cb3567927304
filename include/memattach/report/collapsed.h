#pragma once

#include <string>

#include "memattach/profile/profile.h"
#include "memattach/report/metric.h"

namespace memattach::report {

/// One line a stack, outermost frame first, as flamegraph.pl and its kin read them:
///
///     main (app.py:12);load (app.py:40) 17
///
/// Weights are whole numbers (samples or bytes); stacks without any are left out. With several processes or
/// with --threads the outermost frames are "process 12" and "thread 34 (name)". Semicolons in names become
/// colons; control characters and line breaks are shown escaped.
[[nodiscard]] std::string to_collapsed(const profile::Profile& profile, Metric metric);

}  // namespace memattach::report
