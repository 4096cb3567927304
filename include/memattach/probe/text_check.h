#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace memattach::probe {

/// Whether the code pages at `pages` (page addresses) hold what their files hold. Pages that no file backs
/// (code made at run time) can't be told and are left out; nothing where the process is gone or none could be
/// compared.
std::optional<bool> text_equals_files(int pid, const std::vector<std::uint64_t>& pages);

}  // namespace memattach::probe
