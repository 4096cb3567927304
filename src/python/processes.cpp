#include "memattach/python/processes.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "locate.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"

namespace memattach::python {
namespace {

std::vector<int> own_line() {
    std::vector<int> pids;
    for (int pid = ::getpid(); pid > 0 && pids.size() < 1000;) {
        pids.push_back(pid);
        const auto stat = process::read_stat(pid);
        pid = stat ? stat->parent_pid : 0;
    }
    return pids;
}

}  // namespace

std::optional<PythonProcess> describe_python_process(int pid) {
    const auto stat = process::read_stat(pid);
    const auto status = process::read_status(pid);
    if (!stat || !status || stat->is_kernel_thread() || stat->is_zombie()) return std::nullopt;
    const process::LiveMemory memory(pid);
    const Located located = locate_interpreters(pid, memory);
    std::optional<Version> version = located.old_version;
    if (!located.interpreters.empty()) version = find_version(located.interpreters.front(), memory);
    if (located.interpreters.empty() && !located.old_version) return std::nullopt;

    PythonProcess found;
    found.pid = pid;
    found.uid = status->effective_uid;
    if (version && version->hex != 0) {
        found.version = fmt::format("{}.{}.{}", version->major, version->minor, version->micro);
    } else if (version) {
        found.version = fmt::format("{}.{}", version->major, version->minor);
    }
    found.supported = version && version->major == 3 && version->minor >= 8;
    found.age_s = process::age_s(*stat);
    found.rss_bytes = stat->rss_pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    found.command_line = process::command_line(pid);
    return found;
}

std::vector<PythonProcess> list_python_processes(std::uint32_t uid) {
    const std::vector<int> own = own_line();
    std::vector<PythonProcess> found;
    for (const int pid : process::list_processes()) {
        if (std::find(own.begin(), own.end(), pid) != own.end()) continue;
        const auto status = process::read_status(pid);
        if (!status || status->effective_uid != uid) continue;
        if (auto python = describe_python_process(pid)) found.push_back(std::move(*python));
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.age_s > b.age_s; });
    return found;
}

}  // namespace memattach::python
