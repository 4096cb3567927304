#include "thread_activity.h"

#include <fmt/format.h>
#include <sys/syscall.h>

#include <cstdlib>
#include <sstream>

#include "memattach/base/text.h"
#include "memattach/process/proc.h"

namespace memattach::cli {
namespace {

/// System calls that a thread of a Python program waits in.
struct KnownCall {
    long number;
    const char* name;
    const char* meaning;  ///< in front of the name; nullptr: "waiting in NAME"
    bool on_descriptor;   ///< the first argument is one
};
constexpr KnownCall kCalls[] = {
    {SYS_futex, "futex", "waiting for a lock or a condition", false},
    {SYS_read, "read", nullptr, true},
    {SYS_write, "write", nullptr, true},
    {SYS_readv, "readv", nullptr, true},
    {SYS_writev, "writev", nullptr, true},
    {SYS_pread64, "pread", nullptr, true},
    {SYS_pwrite64, "pwrite", nullptr, true},
    {SYS_recvfrom, "recv", nullptr, true},
    {SYS_recvmsg, "recvmsg", nullptr, true},
    {SYS_sendto, "send", nullptr, true},
    {SYS_sendmsg, "sendmsg", nullptr, true},
    {SYS_accept, "accept", nullptr, true},
    {SYS_accept4, "accept", nullptr, true},
    {SYS_connect, "connect", nullptr, true},
    {SYS_fsync, "fsync", nullptr, true},
    {SYS_fdatasync, "fdatasync", nullptr, true},
    {SYS_flock, "flock", nullptr, true},
    {SYS_fcntl, "fcntl", nullptr, true},
    {SYS_ioctl, "ioctl", nullptr, true},
    {SYS_splice, "splice", nullptr, true},
    {SYS_sendfile, "sendfile", nullptr, true},
    {SYS_epoll_wait, "epoll_wait", "waiting for events", true},
    {SYS_epoll_pwait, "epoll_wait", "waiting for events", true},
    {SYS_poll, "poll", "waiting for events", false},
    {SYS_ppoll, "poll", "waiting for events", false},
    {SYS_select, "select", "waiting for events", false},
    {SYS_pselect6, "select", "waiting for events", false},
    {SYS_nanosleep, "nanosleep", "sleeping", false},
    {SYS_clock_nanosleep, "clock_nanosleep", "sleeping", false},
    {SYS_wait4, "wait4", "waiting for a child process", false},
    {SYS_waitid, "waitid", "waiting for a child process", false},
    {SYS_rt_sigtimedwait, "sigtimedwait", "waiting for a signal", false},
    {SYS_pause, "pause", "waiting for a signal", false},
    {SYS_open, "open", nullptr, false},
    {SYS_openat, "openat", nullptr, false},
    {SYS_restart_syscall, "restart_syscall", nullptr, false},
    {SYS_io_getevents, "io_getevents", nullptr, false},
    {SYS_semtimedop, "semtimedop", "waiting for a semaphore", false},
    {SYS_msgrcv, "msgrcv", nullptr, false},
};

const KnownCall* find_call(long number) {
    for (const KnownCall& call : kCalls) {
        if (call.number == number) return &call;
    }
    return nullptr;
}

/// The states of proc_pid_stat(5).
std::string state_name(char state) {
    switch (state) {
        case 'R':
            return "running";
        case 'S':
        case 'I':
            return "waiting";
        case 'D':
            return "uninterruptible";
        case 'T':
            return "stopped";
        case 't':
            return "traced";
        case 'Z':
        case 'X':
            return "ended";
        default:
            return std::string(1, state);
    }
}

}  // namespace

SystemCall parse_syscall(const std::string& text) {
    std::istringstream in(text);
    SystemCall call;
    if (!(in >> call.number)) return {};
    std::string argument;
    if (in >> argument) call.first_argument = std::strtoul(argument.c_str(), nullptr, 16);
    return call;
}

Activity thread_activity(int pid, int tid) {
    Activity activity;
    const std::string base = fmt::format("/proc/{}/task/{}/", pid, tid);
    const auto text = process::read_file(base + "stat");
    const auto stat = text ? process::parse_stat(*text) : std::nullopt;
    activity.state = stat ? state_name(stat->state) : "ended";
    activity.running = stat && stat->state == 'R';
    if (!stat || activity.running) return activity;
    const auto syscall = process::read_file(base + "syscall");
    const SystemCall call = syscall ? parse_syscall(*syscall) : SystemCall{};
    if (call.number < 0) return activity;
    const KnownCall* known = find_call(call.number);
    activity.first_argument = call.first_argument;
    activity.system_call = known != nullptr ? known->name : fmt::format("system call {}", call.number);
    if (known != nullptr && known->on_descriptor) {
        activity.object = fmt::format("fd {}", call.first_argument);
        if (const auto link = process::read_link(fmt::format("/proc/{}/fd/{}", pid, call.first_argument))) {
            activity.object += fmt::format(" ({})", *link);
        }
    }
    return activity;
}

std::string thread_name(int pid, int tid) {
    auto name = process::read_file(fmt::format("/proc/{}/task/{}/comm", pid, tid)).value_or("?");
    if (name.ends_with('\n')) name.pop_back();
    return name;
}

std::string describe(const Activity& activity) {
    std::string text = activity.state == "uninterruptible" ? "waiting, not interruptible" : activity.state;
    if (activity.system_call.empty()) return text;
    for (const KnownCall& call : kCalls) {
        if (activity.state != "waiting" || call.name != activity.system_call || call.meaning == nullptr)
            continue;
        return fmt::format("{} ({}{}{})", call.meaning, call.name, activity.object.empty() ? "" : " on ",
                           base::printable(activity.object, 200));
    }
    return fmt::format("{} in {}{}{}", text, activity.system_call, activity.object.empty() ? "" : " on ",
                       base::printable(activity.object, 200));
}

}  // namespace memattach::cli
