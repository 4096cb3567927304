#pragma once

#include <optional>
#include <string>
#include <vector>

#include "memattach/elf/image.h"
#include "memattach/elf/memory_image.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "module.h"

namespace memattach::python {

/// Where an interpreter's _PyRuntime is, with its module open for more questions.
struct Interpreter {
    Module module;
    std::optional<elf::Image> image;  ///< nothing: no file of it could be opened
    std::optional<elf::MemoryImage> memory_image;
    std::uint64_t bias = 0;
    base::Address runtime;
    std::string found_by;  ///< "symbol _PyRuntime in .dynsym of /usr/bin/python3.11"

    /// The address of one of its symbols.
    [[nodiscard]] std::optional<base::Address> find_symbol(std::string_view name) const;
    [[nodiscard]] std::string build_id() const;
};

struct Located {
    /// Where a process has several (a program that links libpython statically and loads a module that drags
    /// in the shared one), the likeliest first.
    std::vector<Interpreter> interpreters;
    /// Without an interpreter: what was seen instead. A Python that is too old to have a _PyRuntime has a
    /// version here; `unopened` says which file couldn't be looked into, in one clause.
    std::optional<Version> old_version;
    std::string unopened;
    bool may_appear = false;  ///< it is Python, and _PyRuntime can be found once a thread runs Python code
    std::string other;  ///< "runs PyPy, which memattach can't read": something better known than "not Python"
};

/// Looks for _PyRuntime in the modules of the process. `memory` is read where a file can't be.
Located locate_interpreters(int pid, const process::Memory& memory);

/// The version of a located interpreter, from the target's memory; nothing where it isn't there yet.
std::optional<Version> find_version(const Interpreter& interpreter, const process::Memory& memory);

}  // namespace memattach::python
