#pragma once

#include <optional>
#include <string_view>

#include "memattach/python/layout.h"

namespace memattach::python {

/// The version in the text that Py_GetVersion() gives, "3.8.18 (default, Jan  1 2024, …) [GCC 12.2.0]",
/// wherever such a text begins in `bytes`. Versions before 3.11 keep it in .bss and have no other mark.
std::optional<Version> find_version_text(std::string_view bytes);

/// The minor version (micro 0, hex 0) in the name of a library or program: "libpython3.8.so.1.0",
/// "python3.11", "libpython2.7.so".
std::optional<Version> version_in_name(std::string_view base_name);

}  // namespace memattach::python
