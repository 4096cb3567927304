#pragma once

#include <optional>
#include <vector>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "module.h"

namespace memattach::python {

/// Looks for _PyRuntime by what it must look like: for 3.8 to 3.12 linked into a program that has neither the
/// symbol nor debug offsets (a stripped static executable that exports nothing). Two neighbouring words in
/// the module's data, interpreters.head and .main, must lead to interpreters, and from the first of them a
/// walk to a code object must succeed along `layout`. Nothing where no thread runs Python code now.
std::optional<base::Address> find_runtime_by_structure(const process::Memory& memory, const Module& module,
                                                       const std::vector<process::Mapping>& maps,
                                                       const Layout& layout);

}  // namespace memattach::python
