#pragma once

#include <string>

#include "memattach/profile/profile.h"

namespace memattach::report {

struct TableOptions {
    std::size_t width = 0;      ///< columns of the terminal; 0: unlimited
    bool color = false;         ///< ANSI colours
    bool functions = false;     ///< --reduced-profile: functions instead of lines
    std::size_t max_rows = 30;  ///< over all files; how much was left out is said
};

/// The profile for a terminal (or a pipe): the most expensive lines by file, hotspots, leak suspects, and how
/// it was measured. Columns of a lens that was off are left out. Everything from the target goes through
/// base::printable. Ends in a newline.
[[nodiscard]] std::string to_table(const profile::Profile& profile, const TableOptions& options);

/// Only the closing block, "How it was measured".
[[nodiscard]] std::string measurement_text(const profile::Profile& profile);

}  // namespace memattach::report
