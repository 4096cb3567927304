#pragma once

#include <chrono>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"

namespace memattach::python {

struct FindOptions {
    /// How long to wait for a target that is still starting up (not exec'ed to Python yet, no interpreter
    /// yet).
    std::chrono::milliseconds startup_wait{2000};
    /// Directory of the DWARF layout cache; empty: XDG_CACHE_HOME/memattach, else ~/.cache/memattach. Never
    /// fails because of it.
    std::string cache_directory;
};

/// Finds the CPython runtime of process `pid` and how to read it. Throws base::Error, in one line, where the
/// process is not Python, is too old (names the version), can't be read (says which permission is missing),
/// or has a layout that can't be known.
Runtime find_runtime(int pid, const process::Memory& memory, const FindOptions& options = {});

}  // namespace memattach::python
