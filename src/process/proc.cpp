#include "memattach/process/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <ctime>
#include <memory>

#include "memattach/base/clock.h"

namespace memattach::process {
namespace {

template <typename T>
bool take_number(std::string_view& text, T& value, int base = 10) {
    text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc()) return false;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return true;
}

/// The entries of a directory whose names are numbers.
std::vector<int> numbered_entries(const std::string& path) {
    std::vector<int> numbers;
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
    if (!directory) return numbers;
    while (const dirent* entry =
               ::readdir(directory.get())) {  // NOLINT(concurrency-mt-unsafe): a stream of its own
        int number = 0;
        const std::string_view name = entry->d_name;
        const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
        if (error == std::errc() && end == name.data() + name.size()) numbers.push_back(number);
    }
    return numbers;
}

}  // namespace

std::optional<std::string> read_file(const std::string& path, std::size_t max_bytes) {
    const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    if (!fd.is_open()) return std::nullopt;
    std::string text;
    std::array<char, 65536> chunk;
    while (text.size() < max_bytes) {
        const ssize_t got = ::read(fd.get(), chunk.data(), std::min(chunk.size(), max_bytes - text.size()));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return std::nullopt;
        if (got == 0) break;
        text.append(chunk.data(), static_cast<std::size_t>(got));
    }
    return text;
}

std::optional<std::string> read_proc(int pid, std::string_view name) {
    return read_file(fmt::format("/proc/{}/{}", pid, name));
}

std::optional<std::string> read_variable(int pid, std::string_view name) {
    const auto environment = read_proc(pid, "environ");
    return environment ? parse_variable(*environment, name) : std::nullopt;
}

std::optional<std::string> parse_variable(std::string_view environment, std::string_view name) {
    while (!environment.empty()) {
        const std::string_view variable = environment.substr(0, environment.find('\0'));
        if (variable.size() > name.size() && variable.starts_with(name) && variable[name.size()] == '=')
            return std::string(variable.substr(name.size() + 1));
        environment.remove_prefix(std::min(variable.size() + 1, environment.size()));
    }
    return std::nullopt;
}

std::optional<std::string> read_link(const std::string& path) {
    std::string target(PATH_MAX, '\0');
    const ssize_t length = ::readlink(path.c_str(), target.data(), target.size());
    if (length < 0) return std::nullopt;
    target.resize(static_cast<std::size_t>(length));
    return target;
}

std::optional<Stat> parse_stat(std::string_view text) {
    Stat stat;
    if (!take_number(text, stat.pid)) return std::nullopt;
    const std::size_t open = text.find('(');
    const std::size_t close = text.rfind(')');
    if (open == std::string_view::npos || close == std::string_view::npos || close < open)
        return std::nullopt;
    stat.comm = text.substr(open + 1, close - open - 1);
    text.remove_prefix(close + 1);
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
    if (text.empty()) return std::nullopt;
    stat.state = text.front();
    text.remove_prefix(1);
    std::array<std::int64_t, 21> fields{};  // fields 4 to 24 of proc_pid_stat(5)
    for (std::int64_t& field : fields) {
        std::uint64_t large = 0;
        std::string_view again = text;
        if (take_number(text, field)) continue;
        if (!take_number(again, large)) return std::nullopt;  // more than an int64 holds
        field = static_cast<std::int64_t>(large);
        text = again;
    }
    const auto field = [&](std::size_t number) { return static_cast<std::uint64_t>(fields[number - 4]); };
    stat.parent_pid = static_cast<int>(field(4));
    stat.flags = field(9);
    stat.user_ticks = field(14);
    stat.system_ticks = field(15);
    stat.thread_count = field(20);
    stat.start_ticks = field(22);
    stat.rss_pages = field(24);
    return stat;
}

std::optional<Status> parse_status(std::string_view text) {
    Status status;
    while (!text.empty()) {
        const std::size_t newline = std::min(text.find('\n'), text.size());
        std::string_view line = text.substr(0, newline);
        text.remove_prefix(std::min(newline + 1, text.size()));
        const std::size_t colon = line.find(':');
        if (colon == std::string_view::npos) continue;
        const std::string_view key = line.substr(0, colon);
        line.remove_prefix(colon + 1);
        if (key == "Tgid") {
            take_number(line, status.thread_group_id);
        } else if (key == "PPid") {
            take_number(line, status.parent_pid);
        } else if (key == "TracerPid") {
            take_number(line, status.tracer_pid);
        } else if (key == "Uid") {
            take_number(line, status.real_uid);
            take_number(line, status.effective_uid);
            take_number(line, status.saved_uid);
        } else if (key == "Gid") {
            take_number(line, status.real_gid);
            take_number(line, status.effective_gid);
            take_number(line, status.saved_gid);
        } else if (key == "NSpid") {
            for (int tid = 0; take_number(line, tid);) status.namespace_tids.push_back(tid);
        } else if (key == "CapEff") {
            take_number(line, status.effective_capabilities, 16);
        } else if (key == "CapPrm") {
            take_number(line, status.permitted_capabilities, 16);
        } else if (key == "Seccomp") {
            take_number(line, status.seccomp_mode);
        } else if (key == "Pid" && status.namespace_tids.empty()) {
            // NSpid comes later and is missing where the kernel has no pid namespaces.
            if (int tid = 0; take_number(line, tid)) status.namespace_tids.push_back(tid);
        }
    }
    if (status.thread_group_id == 0 || status.namespace_tids.empty()) return std::nullopt;
    if (status.namespace_tids.size() > 1) status.namespace_tids.erase(status.namespace_tids.begin());
    return status;
}

std::optional<SchedStat> parse_schedstat(std::string_view text) {
    SchedStat s;
    if (!take_number(text, s.on_cpu_ns) || !take_number(text, s.waiting_ns) ||
        !take_number(text, s.timeslices))
        return std::nullopt;
    return s;
}

std::vector<std::string> parse_cmdline(std::string_view text) {
    std::vector<std::string> arguments;
    while (!text.empty()) {
        const std::size_t nul = std::min(text.find('\0'), text.size());
        arguments.emplace_back(text.substr(0, nul));
        text.remove_prefix(std::min(nul + 1, text.size()));
    }
    // A process that writes its title over its arguments (setproctitle) leaves a tail of empty ones.
    while (!arguments.empty() && arguments.back().empty()) arguments.pop_back();
    return arguments;
}

std::optional<Stat> read_stat(int pid) {
    const auto text = read_proc(pid, "stat");
    return text ? parse_stat(*text) : std::nullopt;
}

std::optional<Status> read_status(int pid) {
    const auto text = read_proc(pid, "status");
    return text ? parse_status(*text) : std::nullopt;
}

std::vector<Mapping> read_maps(int pid) {
    const auto text = read_proc(pid, "maps");
    return text ? parse_maps(*text) : std::vector<Mapping>();
}

std::vector<int> list_threads(int pid) {
    return numbered_entries(fmt::format("/proc/{}/task", pid));
}

std::vector<int> list_processes() {
    return numbered_entries("/proc");
}

double age_s(const Stat& stat) {
    timespec now{};
    if (::clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0;
    const double since_boot_s = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
    return since_boot_s - static_cast<double>(stat.start_ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::string command_line(int pid) {
    std::string line;
    for (const std::string& argument : parse_cmdline(read_proc(pid, "cmdline").value_or(""))) {
        if (!line.empty()) line += ' ';
        line += argument;
    }
    if (!line.empty()) return line;
    const auto stat = read_stat(pid);
    return stat ? '[' + stat->comm + ']' : line;
}

std::optional<int> namespace_tid(int pid, int tid) {
    const auto text = read_proc(pid, fmt::format("task/{}/status", tid));
    const auto status = text ? parse_status(*text) : std::nullopt;
    if (!status) return std::nullopt;
    return status->namespace_tids.back();
}

bool same_namespace(int pid, int other_pid, std::string_view kind) {
    const auto one = read_link(fmt::format("/proc/{}/ns/{}", pid, kind));
    const auto other = read_link(fmt::format("/proc/{}/ns/{}", other_pid, kind));
    return one && other && *one == *other;
}

const Mapping* RecentMaps::find(base::Address address) {
    constexpr std::uint64_t kReadAgainNs = 1'000'000'000;
    const Mapping* found = find_mapping(maps_, address);
    const std::uint64_t now_ns = base::monotonic_ns();
    if (found != nullptr || (read_ns_ != 0 && now_ns - read_ns_ < kReadAgainNs)) return found;
    read_ns_ = now_ns;
    maps_ = read_maps(pid_);
    return find_mapping(maps_, address);
}

}  // namespace memattach::process
