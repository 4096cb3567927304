/// What /proc says about a process: read whole, parsed from the text alone, so that the parsers need no
/// process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"

namespace memattach::process {

/// The bytes of a small file (a file below /proc, a sysctl), or nothing where it can't be opened or read;
/// errno then says why. At most `max_bytes`.
std::optional<std::string> read_file(const std::string& path, std::size_t max_bytes = 64 << 20);

/// read_file("/proc/PID/NAME")
std::optional<std::string> read_proc(int pid, std::string_view name);

/// The value of an environment variable as a process was started with it; nothing where it wasn't, or where
/// /proc/PID/environ can't be read.
std::optional<std::string> read_variable(int pid, std::string_view name);
/// The same, of environ's text.
std::optional<std::string> parse_variable(std::string_view environment, std::string_view name);

/// The target of a symbolic link ("/proc/1/exe"), or nothing; errno then says why.
std::optional<std::string> read_link(const std::string& path);

/// What of /proc/PID/stat is of use. The command name may hold anything, blanks and parentheses too.
struct Stat {
    int pid = 0;
    std::string comm;
    char state = '?';  ///< R S D Z T t X I …, proc_pid_stat(5)
    int parent_pid = 0;
    std::uint64_t flags = 0;  ///< PF_KTHREAD is 0x00200000
    std::uint64_t user_ticks = 0;
    std::uint64_t system_ticks = 0;
    std::uint64_t thread_count = 0;
    std::uint64_t start_ticks = 0;  ///< since boot; with the pid it names a process for good
    std::uint64_t rss_pages = 0;

    [[nodiscard]] bool is_kernel_thread() const { return (flags & 0x00200000) != 0; }
    [[nodiscard]] bool is_zombie() const { return state == 'Z' || state == 'X'; }
};
std::optional<Stat> parse_stat(std::string_view text);

/// What of /proc/PID/status is of use. A line that isn't there leaves its default.
struct Status {
    int thread_group_id = 0;
    int parent_pid = 0;
    int tracer_pid = 0;
    std::uint32_t real_uid = 0, effective_uid = 0, saved_uid = 0;
    std::uint32_t real_gid = 0, effective_gid = 0, saved_gid = 0;
    /// The thread's id in each pid namespace, from the reader's to its own innermost; never empty.
    std::vector<int> namespace_tids;
    std::uint64_t effective_capabilities = 0;
    std::uint64_t permitted_capabilities = 0;
    int seccomp_mode = 0;  ///< 0 off, 1 strict, 2 filter
};
std::optional<Status> parse_status(std::string_view text);

/// /proc/PID/schedstat: time on the CPU and time spent waiting for one.
struct SchedStat {
    std::uint64_t on_cpu_ns = 0;
    std::uint64_t waiting_ns = 0;
    std::uint64_t timeslices = 0;
};
std::optional<SchedStat> parse_schedstat(std::string_view text);

/// The arguments of /proc/PID/cmdline.
std::vector<std::string> parse_cmdline(std::string_view text);

std::optional<Stat> read_stat(int pid);
std::optional<Status> read_status(int pid);
/// Empty where it can't be read (errno says why) and for kernel threads.
std::vector<Mapping> read_maps(int pid);

/// The mappings of a process that goes on: read again where an address lies in none of those that are known,
/// once a second at most.
class RecentMaps {
  public:
    explicit RecentMaps(int pid) : pid_(pid) {}
    /// Valid until the next call; nullptr where nothing is mapped there, or it isn't known yet.
    [[nodiscard]] const Mapping* find(base::Address address);

  private:
    int pid_;
    std::vector<Mapping> maps_;
    std::uint64_t read_ns_ = 0;
};

/// The ids of all threads (in this process's pid namespace), as the kernel lists them; empty where the
/// process is gone.
std::vector<int> list_threads(int pid);

/// The ids of all processes (in this process's pid namespace).
std::vector<int> list_processes();

/// How long ago the process started, in seconds.
double age_s(const Stat& stat);

/// One line of /proc/PID/cmdline's arguments, joined by blanks; the comm in brackets where there are none.
std::string command_line(int pid);

/// The id of the innermost pid namespace's view of `tid` (what the thread's own gettid() says), or nothing.
std::optional<int> namespace_tid(int pid, int tid);

/// True where both links name one namespace; false where either can't be read.
bool same_namespace(int pid, int other_pid, std::string_view kind);

}  // namespace memattach::process
