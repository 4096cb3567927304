#pragma once

#include <optional>
#include <string>
#include <vector>

#include "memattach/elf/image.h"
#include "memattach/process/maps.h"

namespace memattach::python {

/// One file of the target with all that is mapped of it.
struct Module {
    std::string path;
    std::vector<process::Mapping> mappings;  ///< of the file, ascending
    /// Writable memory of the module, .bss included (which the loader maps anonymously behind the file's
    /// data).
    std::vector<process::Mapping> data;

    [[nodiscard]] std::string_view base_name() const {
        return std::string_view(path).substr(path.rfind('/') + 1);
    }
};

/// The modules of a process that may hold an interpreter, likeliest first: the executable, then files named
/// like libpython, then the others. `exe` is the executable's path as /proc/PID/exe has it.
std::vector<Module> candidate_modules(const std::vector<process::Mapping>& maps, std::string_view exe);

}  // namespace memattach::python
