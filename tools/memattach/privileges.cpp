#include "privileges.h"

#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>

#include "memattach/base/error.h"
#include "memattach/probe/perf_event.h"
#include "memattach/process/proc.h"

namespace memattach::cli {
namespace {

std::optional<int> read_sysctl(const std::string& path) {
    const auto text = process::read_file(path);
    int value = 0;
    if (!text || std::from_chars(text->data(), text->data() + text->size(), value).ec != std::errc{}) {
        return std::nullopt;
    }
    return value;
}

/// A child that does nothing; killed and collected at the end.
class Child {
  public:
    Child() : pid_(::fork()) {
        if (pid_ != 0) return;
        while (true) ::pause();
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        while (::waitpid(pid_, nullptr, __WALL) < 0 && errno == EINTR) {
        }
    }
    [[nodiscard]] pid_t pid() const { return pid_; }

  private:
    pid_t pid_;
};

}  // namespace

Privileges read_privileges() {
    Privileges mine;
    mine.effective_uid = ::geteuid();
    if (const auto status = process::read_status(::getpid())) {
        mine.capabilities = status->effective_capabilities;
        mine.seccomp_mode = status->seccomp_mode;
    }
    // In the initial namespace all ids map to themselves: "0 0 4294967295" (user_namespaces(7)).
    if (const auto map = process::read_file("/proc/self/uid_map")) {
        mine.initial_user_namespace = map->find("4294967295") != std::string::npos;
    }
    // PROC_PID_INIT_INO, include/linux/proc_ns.h
    struct stat pid_namespace {};
    if (::stat("/proc/self/ns/pid", &pid_namespace) == 0) {
        mine.initial_pid_namespace = pid_namespace.st_ino == 0xEFFFFFFCU;
    }
    mine.ptrace_scope = read_sysctl("/proc/sys/kernel/yama/ptrace_scope");
    mine.perf_event_paranoid = read_sysctl("/proc/sys/kernel/perf_event_paranoid");
    mine.perf_event_mlock_kb = read_sysctl("/proc/sys/kernel/perf_event_mlock_kb");
    rlimit files{};
    if (::getrlimit(RLIMIT_NOFILE, &files) == 0) mine.open_files_limit = files.rlim_max;
    utsname name{};
    if (::uname(&name) == 0) mine.kernel = fmt::format("{} {} {}", name.sysname, name.release, name.machine);
    return mine;
}

Trial try_on_child() {
    Trial trial;
    const Child child;
    if (child.pid() < 0) {
        trial.read = trial.trace = trial.perf =
            fmt::format("no process can be made: {}", base::errno_text(errno));
        return trial;
    }
    char ours = 'x';
    char theirs = 0;
    iovec local{&theirs, 1};
    iovec remote{&ours, 1};  // the child has the same at the same address
    if (::process_vm_readv(child.pid(), &local, 1, &remote, 1, 0) != 1) {
        trial.read = fmt::format("process_vm_readv on an own child: {}", base::errno_text(errno));
    }
    if (::ptrace(PTRACE_SEIZE, child.pid(), 0, 0) != 0) {
        trial.trace = fmt::format("ptrace on an own child: {}", base::errno_text(errno));
    }
    const probe::PerfAccess perf = probe::probe_perf(child.pid());
    if (!perf.allowed) trial.perf = perf.why_not;
    return trial;
}

}  // namespace memattach::cli
