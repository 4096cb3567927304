/// The profile as JSON, `memattach.profile/1`, written whole and read back whole. Beside the documented
/// fields:
///
///  - `function_table`: [{name, file, first_line, kind}]
///  - `frame_table`: [[function, line, outer]], where `outer` is the index of the calling frame, below its
///  own;
///    null where there is none
///  - `stacks`: [{frame, pid, tid, cpu_samples, …}], where `frame` is the index of the innermost frame; null
///  for
///    an empty stack
///  - `timeline`: {t_s: […], rss_bytes: […], live_bytes: […], cpu_pct: […]}, columns of equal length
///  - `sources`: [{path, lines: [[number, text]]}], the source around the lines that have figures
///
/// Unknown is null. Text from the target is made valid UTF-8. Figures keep all their digits, so that they
/// still add up when they are read back.
#pragma once

#include <string>
#include <string_view>

#include "memattach/profile/profile.h"

namespace memattach::report {

inline constexpr std::string_view kSchema = "memattach.profile/1";

/// One object and a newline at its end.
[[nodiscard]] std::string to_json(const profile::Profile& profile);

/// Reads what to_json wrote, or anything else: whatever is wrong with it is a base::Error of one line that
/// begins with `name`. What comes back has passed profile::check().
[[nodiscard]] profile::Profile read_json(std::string_view text, const std::string& name);

}  // namespace memattach::report
