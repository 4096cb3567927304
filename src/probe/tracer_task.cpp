#include "tracer_task.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/base/unique_fd.h"

namespace memattach::probe {
namespace {

/// The start of a file in /proc; empty where it can't be read.
std::string start_of(const std::string& path) {
    const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.is_open()) return {};
    std::string text(4096, '\0');
    const ssize_t bytes = ::read(fd.get(), text.data(), text.size());
    text.resize(bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
    return text;
}

long number_after(const std::string& text, const char* key) {
    const std::size_t at = text.find(key);
    return at == std::string::npos ? 0 : std::strtol(text.c_str() + at + std::strlen(key), nullptr, 10);
}

/// What follows the command name, which may itself hold spaces and parentheses.
const char* behind_name(const std::string& stat) {
    const std::size_t at = stat.rfind(')');
    return at == std::string::npos || at + 2 >= stat.size() ? nullptr : stat.c_str() + at + 2;
}

}  // namespace

std::vector<pid_t> tasks_of(pid_t pid) {
    std::vector<pid_t> tasks;
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(fmt::format("/proc/{}/task", pid).c_str()),
                                                        closedir);
    if (!directory) return tasks;
    while (const dirent* entry = readdir(directory.get())) {
        const pid_t tid = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
        if (tid > 0) tasks.push_back(tid);
    }
    return tasks;
}

pid_t tracer_of(pid_t pid, pid_t tid) {
    return static_cast<pid_t>(
        number_after(start_of(fmt::format("/proc/{}/task/{}/status", pid, tid)), "\nTracerPid:"));
}

bool is_thread_of(pid_t pid, pid_t tid) {
    // The group is compared before anything else (kernel/signal.c do_send_specific()).
    return syscall(SYS_tgkill, pid, tid, 0) == 0 || errno == EPERM;
}

char state_of(pid_t tid) {
    const std::string stat = start_of(fmt::format("/proc/{}/stat", tid));
    const char* fields = behind_name(stat);
    return fields == nullptr ? '\0' : *fields;
}

std::optional<int> last_cpu_of(pid_t pid, pid_t tid) {
    const std::string stat = start_of(fmt::format("/proc/{}/task/{}/stat", pid, tid));
    const char* fields = behind_name(stat);
    // proc(5): state is field 3, processor field 39
    for (int field = 3; field < 39 && fields != nullptr; ++field) {
        fields = std::strchr(fields, ' ');
        if (fields != nullptr) ++fields;
    }
    if (fields == nullptr) return std::nullopt;
    return static_cast<int>(std::strtol(fields, nullptr, 10));
}

void throw_not_permitted(pid_t pid, int error) {
    if (error == ENOENT || error == ESRCH) base::throw_error("process {} is gone", pid);
    if (const pid_t other = tracer_of(pid, pid); other != 0) {
        std::string name = start_of(fmt::format("/proc/{}/comm", other));
        while (!name.empty() && name.back() == '\n') name.pop_back();
        base::throw_error("process {} is already traced by process {} ({}): end that first, or use --cpu",
                          pid, other, base::printable(name, 64));
    }
    if (error == EPERM || error == EACCES) {
        const std::string yama = start_of("/proc/sys/kernel/yama/ptrace_scope");
        if (!yama.empty() && yama[0] != '0' && geteuid() != 0) {
            base::throw_error(
                "not permitted to trace process {}: kernel.yama.ptrace_scope is {}; run as root "
                "or with CAP_SYS_PTRACE",
                pid, yama[0]);
        }
        base::throw_error(
            "not permitted to trace process {}: run as its user, as root or with CAP_SYS_PTRACE", pid);
    }
    base::throw_error("can't trace process {}: {}", pid, base::errno_text(error));
}

bool ThreadMemory::load(std::uint64_t address, std::span<std::byte> out) {
    errno = 0;
    const long word = ptrace(PTRACE_PEEKDATA, tid_, reinterpret_cast<void*>(address), nullptr);
    if (errno == 0) {
        std::memcpy(out.data(), &word, out.size());  // operands have at most 8 bytes
        return true;
    }
    // The eight bytes may reach into an unmapped page where the operand's own don't.
    const iovec local{out.data(), out.size()};
    const iovec remote{reinterpret_cast<void*>(address), out.size()};
    return process_vm_readv(tid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(out.size());
}

/// ptrace writes reach read-only pages, which the instruction itself would fault on: narrower writes, and
/// those outside of the stack, take the way that respects protections.
bool ThreadMemory::store(std::uint64_t address, std::span<const std::byte> bytes) {
    const iovec local{const_cast<std::byte*>(bytes.data()), bytes.size()};
    const iovec remote{reinterpret_cast<void*>(address), bytes.size()};
    return process_vm_writev(tid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes.size());
}

}  // namespace memattach::probe
