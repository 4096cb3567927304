#include "memattach/session/target.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <ctime>
#include <string_view>

#include "memattach/process/proc.h"

namespace memattach::session {
namespace {

/// PIDFD_GET_INFO (Linux 6.13; exit codes since 6.15), include/uapi/linux/pidfd.h. Older headers lack it.
struct PidfdInfo {
    std::uint64_t mask;
    std::uint64_t cgroupid;
    std::uint32_t ids[11];
    std::int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr std::uint64_t kPidfdInfoExit = 1 << 3;
constexpr unsigned long kPidfdGetInfo = _IOWR(0xFF, 11, PidfdInfo);

std::optional<double> read_number(const std::string& path) {
    const auto text = process::read_file(path, 64);
    if (!text) return std::nullopt;
    double value = 0;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (error != std::errc{}) return std::nullopt;  // "max"
    return value;
}

Ending from_wait_status(int status) {
    return WIFSIGNALED(status) ? Ending::killed : Ending::exited;
}

}  // namespace

std::string version_text(const python::Runtime& runtime) {
    const python::Version& v = runtime.version;
    std::string text = fmt::format("{}.{}.{}", v.major, v.minor, v.micro);
    const std::uint32_t level = (v.hex >> 4) & 0xF, serial = v.hex & 0xF;
    if (level == 0xA) text += fmt::format("a{}", serial);
    if (level == 0xB) text += fmt::format("b{}", serial);
    if (level == 0xC) text += fmt::format("rc{}", serial);
    if (runtime.free_threaded) text += " free-threaded";
    return text;
}

bool has_gil(const process::Memory& memory, const python::Runtime& runtime) {
    const auto& layout = runtime.layout.interpreter;
    if (!runtime.free_threaded || layout.gil_enabled == python::kAbsent) return true;
    // The main interpreter is the last of the list.
    constexpr int kMostInterpreters = 1024;
    auto interpreter = memory.read_address(runtime.address + runtime.layout.runtime.interpreters_head);
    for (int i = 0; i < kMostInterpreters && interpreter; ++i) {
        const auto next = memory.read_address(*interpreter + layout.next);
        if (!next || next->is_null()) break;
        interpreter = next;
    }
    if (!interpreter || interpreter->is_null()) return true;
    return memory.read<std::int32_t>(*interpreter + layout.gil_enabled).value_or(1) != 0;
}

profile::Target describe_target(int pid, const python::Runtime& runtime) {
    profile::Target target;
    target.pid = pid;
    target.command = process::command_line(pid);
    target.python = version_text(runtime);
    target.exe = process::read_link(fmt::format("/proc/{}/exe", pid)).value_or("");
    return target;
}

std::string now_text() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    ::gmtime_r(&now, &utc);
    std::array<char, 32> text;
    return std::string(text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc));
}

std::optional<double> memory_limit_bytes(int pid) {
    std::optional<double> limit;
    const auto take = [&](std::optional<double> value) {
        if (value && *value > 0 && (!limit || *value < *limit)) limit = value;
    };
    const long pages = ::sysconf(_SC_PHYS_PAGES);
    if (pages > 0) take(static_cast<double>(pages) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
    const auto groups = process::read_proc(pid, "cgroup");
    if (!groups) return limit;
    // "0::/a/b" (v2) or "4:memory:/a/b" (v1); a limit may be set at any level above as well.
    std::string_view rest(*groups);
    while (!rest.empty()) {
        const std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(rest.size(), line.size() + 1));
        const auto first = line.find(':');
        const auto second = line.find(':', first + 1);
        if (first == std::string_view::npos || second == std::string_view::npos) continue;
        const std::string_view controllers = line.substr(first + 1, second - first - 1);
        const bool v2 = controllers.empty();
        if (!v2 && controllers.find("memory") == std::string_view::npos) continue;
        std::string path(line.substr(second + 1));
        while (true) {
            const std::string base =
                (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + (path == "/" ? "" : path);
            take(read_number(base + (v2 ? "/memory.max" : "/memory.limit_in_bytes")));
            const auto slash = path.rfind('/');
            if (path.size() <= 1 || slash == std::string::npos) break;
            path.resize(slash == 0 ? 1 : slash);
        }
    }
    return limit;
}

std::optional<double> rss_bytes(int pid) {
    const auto text = process::read_proc(pid, "statm");
    if (!text) return std::nullopt;
    const auto blank = text->find(' ');
    if (blank == std::string::npos) return std::nullopt;
    std::uint64_t pages = 0;
    const char* start = text->data() + blank + 1;
    const auto [end, error] = std::from_chars(start, text->data() + text->size(), pages);
    if (error != std::errc{}) return std::nullopt;
    return static_cast<double>(pages) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

std::optional<std::uint64_t> process_cpu_ns(int pid) {
    clockid_t clock = 0;
    std::timespec time{};
    if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) return std::nullopt;
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

ProcessEnd::ProcessEnd(int pid)
    : pid_(pid),
      fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))),
      auxv_(process::read_proc(pid, "auxv").value_or("")) {
    if (const auto text = process::read_proc(pid, "stat"))
        if (const auto stat = process::parse_stat(*text)) start_ticks_ = stat->start_ticks;
}

bool ProcessEnd::has_ended() const {
    if (fd_.is_open()) {
        pollfd poll{fd_.get(), POLLIN, 0};
        return ::poll(&poll, 1, 0) > 0;
    }
    const auto stat = process::read_stat(pid_);
    return !stat || stat->is_zombie() || stat->start_ticks != start_ticks_;
}

Ending ProcessEnd::how() const {
    // Our own child: asked without taking its status away from who waits for it.
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT | WNOHANG) == 0 &&
        info.si_pid == pid_)
        return info.si_code == CLD_EXITED ? Ending::exited : Ending::killed;
    // A zombie says it itself (field 52), until its parent has fetched the status.
    if (const auto text = process::read_proc(pid_, "stat")) {
        const auto stat = process::parse_stat(*text);
        const auto blank = text->find_last_of(' ');
        if (stat && stat->start_ticks == start_ticks_ && stat->is_zombie() && blank != std::string::npos) {
            int status = 0;
            const char* end = text->data() + text->size();
            if (std::from_chars(text->data() + blank + 1, end, status).ec == std::errc{})
                return from_wait_status(status);
        }
    }
    if (fd_.is_open()) {
        PidfdInfo exit{};
        exit.mask = kPidfdInfoExit;
        if (::ioctl(fd_.get(), kPidfdGetInfo, &exit) == 0 && (exit.mask & kPidfdInfoExit) != 0)
            return from_wait_status(exit.exit_code);
    }
    return Ending::unknown;
}

bool ProcessEnd::has_execed() const {
    // AT_RANDOM and the vDSO's address move with every exec.
    const auto now = process::read_proc(pid_, "auxv");
    return now && !now->empty() && !auxv_.empty() && *now != auxv_;
}

}  // namespace memattach::session
