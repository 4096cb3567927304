#include "memattach/probe/cpu_task.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <span>

#include "memattach/process/proc.h"

namespace memattach::probe {
namespace {

/// Takes a number (decimal, or hexadecimal after 0x) and the blanks in front of it off `text`.
template <typename T>
std::optional<T> take_number(std::string_view& text) {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    int base = 10;
    if (text.starts_with("0x")) {
        text.remove_prefix(2);
        base = 16;
    }
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{}) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return value;
}

/// Reads a /proc file from its start into `buffer`, opening it first where that hasn't been done.
std::optional<std::string_view> read_again(base::UniqueFd& fd, int pid, int tid, const char* name,
                                           std::span<char> buffer) {
    if (!fd.is_open())
        fd.reset(::open(fmt::format("/proc/{}/task/{}/{}", pid, tid, name).c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.is_open()) return std::nullopt;
    const ssize_t bytes = ::pread(fd.get(), buffer.data(), buffer.size(), 0);
    if (bytes <= 0) return std::nullopt;
    return std::string_view(buffer.data(), static_cast<std::size_t>(bytes));
}

}  // namespace

std::optional<SyscallState> parse_syscall(std::string_view text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
    SyscallState state;
    if (text == "running") {
        state.running = true;
        return state;
    }
    // "nr arg0 … arg5 sp pc" in a call, "-1 sp pc" blocked outside one (proc_pid_syscall(5))
    const auto number = take_number<std::int64_t>(text);
    if (!number) return std::nullopt;
    state.number = *number;
    if (*number >= 0) {
        for (int i = 0; i < 6; ++i)
            if (!take_number<std::uint64_t>(text)) return std::nullopt;
    }
    const auto sp = take_number<std::uint64_t>(text);
    const auto pc = take_number<std::uint64_t>(text);
    if (!sp || !pc) return std::nullopt;
    state.sp = *sp;
    state.pc = *pc;
    return state;
}

std::optional<bool> TaskFiles::is_running() {
    std::array<char, 256> buffer;
    if (!use_stat_) {
        if (const auto text = read_again(syscall_, pid_, tid_, "syscall", buffer)) {
            if (const auto state = parse_syscall(*text)) return state->running;
        }
        // Absent, or withheld: the slower file says the same.
    }
    const auto text = read_again(stat_, pid_, tid_, "stat", buffer);
    if (!text) return std::nullopt;
    // "tid (name) S …": the name may hold anything, so look from its last parenthesis on.
    const auto close = text->rfind(')');
    if (close == std::string_view::npos || close + 2 >= text->size()) return std::nullopt;
    use_stat_ = true;
    const char state = (*text)[close + 2];
    if (state == 'Z' || state == 'X') return std::nullopt;
    return state == 'R';
}

std::optional<std::uint64_t> TaskFiles::burned_ns() {
    std::array<char, 96> buffer;
    const auto text = read_again(schedstat_, pid_, tid_, "schedstat", buffer);
    if (!text) return std::nullopt;
    const auto stat = process::parse_schedstat(*text);
    return stat ? std::optional(stat->on_cpu_ns) : std::nullopt;
}

std::string TaskFiles::name() const {
    std::array<char, 64> buffer;
    base::UniqueFd fd;
    const auto text = read_again(fd, pid_, tid_, "comm", buffer);
    if (!text) return {};
    std::string name(*text);
    while (!name.empty() && name.back() == '\n') name.pop_back();
    return name;
}

std::vector<int> list_children(int pid) {
    std::vector<int> children;
    for (const int tid : process::list_threads(pid)) {
        base::UniqueFd fd(
            ::open(fmt::format("/proc/{}/task/{}/children", pid, tid).c_str(), O_RDONLY | O_CLOEXEC));
        if (!fd.is_open()) continue;
        std::string text;
        std::array<char, 4096> buffer;
        for (ssize_t bytes; (bytes = ::read(fd.get(), buffer.data(), buffer.size())) > 0;)
            text.append(buffer.data(), static_cast<std::size_t>(bytes));
        std::string_view rest(text);
        while (const auto child = take_number<int>(rest)) children.push_back(*child);
    }
    return children;
}

}  // namespace memattach::probe
