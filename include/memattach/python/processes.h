#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memattach::python {

/// A running CPython, as the list of candidates shows it.
struct PythonProcess {
    int pid = 0;
    std::uint32_t uid = 0;
    std::string version;     ///< "3.11.2"; "3.8" where only the file's name says it; empty where nothing does
    bool supported = false;  ///< of a version that memattach reads
    double age_s = 0;
    std::uint64_t rss_bytes = 0;
    std::string command_line;  ///< as the target has it: print it through base::printable
};

/// All CPython processes of the user, oldest first, without memattach itself and without its ancestors (the
/// script or the shell that runs memattach). Cheap: a process is opened only as far as finding _PyRuntime
/// takes. Those that can't be looked into are left out.
std::vector<PythonProcess> list_python_processes(std::uint32_t uid);

/// One process; nothing where it isn't CPython (or can't be looked into).
std::optional<PythonProcess> describe_python_process(int pid);

}  // namespace memattach::python
