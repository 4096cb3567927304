#include "target.h"

#include <fmt/format.h>
#include <unistd.h>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/permission.h"
#include "memattach/process/proc.h"
#include "memattach/python/processes.h"
#include "memattach/report/layout.h"

namespace memattach::cli {
namespace {

std::string name_of(int pid, const process::Stat& stat) {
    return fmt::format("process {} ({})", pid, base::printable(stat.comm, 64));
}

std::string line_of(const python::PythonProcess& process) {
    return fmt::format("\n  {:>8}  Python {:8}  {:>14}  {:>9}  {}", process.pid,
                       process.version.empty() ? "?" : base::printable(process.version, 16),
                       report::duration_text(process.age_s),
                       report::bytes_text(static_cast<double>(process.rss_bytes)),
                       base::printable(process.command_line, 100));
}

}  // namespace

void require_target(int pid) {
    const auto status = process::read_status(pid);
    const auto stat = process::read_stat(pid);
    if (!status || !stat) base::throw_error("there is no process {}", pid);
    if (status->thread_group_id != pid) {
        base::throw_error("{0} is a thread of process {1} ({2}), not a process: give --pid {1}", pid,
                          status->thread_group_id, base::printable(stat->comm, 64));
    }
    if (stat->is_kernel_thread())
        base::throw_error("{} is a kernel thread: no Python runs there", name_of(pid, *stat));
    if (stat->is_zombie()) {
        base::throw_error("{} has ended: it is a zombie that its parent, {}, has not collected",
                          name_of(pid, *stat), stat->parent_pid);
    }
    if (const auto refusal = process::find_obstacle(pid)) throw base::Error(refusal->text());
}

void require_untraced(int pid, const std::string& alternative) {
    for (const int tid : process::list_threads(pid)) {
        const auto text = process::read_file(fmt::format("/proc/{}/task/{}/status", pid, tid));
        const auto status = text ? process::parse_status(*text) : std::nullopt;
        if (!status || status->tracer_pid == 0) continue;
        const auto tracer = process::read_stat(status->tracer_pid);
        base::throw_error(
            "process {} is traced already, by process {} ({}), and only one tracer is possible: end that, or "
            "{}",
            pid, status->tracer_pid, tracer ? base::printable(tracer->comm, 64) : "gone", alternative);
    }
}

int choose_target() {
    const auto candidates = python::list_python_processes(::geteuid());
    if (candidates.empty()) {
        base::throw_error("no Python process of yours is running (uid {}): give --pid PID or -- COMMAND",
                          ::geteuid());
    }
    if (candidates.size() == 1) return candidates.front().pid;
    std::string list;
    for (const python::PythonProcess& candidate : candidates) list += line_of(candidate);
    base::throw_error("{} Python processes of yours are running; say which one with --pid:{}",
                      candidates.size(), list);
}

}  // namespace memattach::cli
