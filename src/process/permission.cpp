#include "memattach/process/permission.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <vector>

#include "memattach/base/error.h"
#include "memattach/base/text.h"

namespace memattach::process {
namespace {

bool has(std::uint64_t capabilities, int capability) {
    return (capabilities >> capability & 1) != 0;
}

/// The user's name from /etc/passwd, read by hand: getpwuid() of a static binary would load the machine's own
/// name service modules, of another libc than its own.
std::string user_name(std::uint32_t uid) {
    const std::string text = read_file("/etc/passwd", 1 << 20).value_or("");
    const std::string id = fmt::format(":{}:", uid);
    for (std::size_t start = 0; start < text.size();) {
        const std::size_t end = std::min(text.find('\n', start), text.size());
        const std::string_view line = std::string_view(text).substr(start, end - start);
        start = end + 1;
        const std::size_t name_end = line.find(':');  // name:password:uid:…
        if (name_end == std::string_view::npos || name_end == 0) continue;
        const std::size_t password_end = line.find(':', name_end + 1);
        if (password_end == std::string_view::npos || !line.substr(password_end).starts_with(id)) continue;
        return fmt::format("{} (uid {})", base::printable(line.substr(0, name_end), 64), uid);
    }
    return fmt::format("uid {}", uid);
}

std::string own_path() {
    return base::printable(read_link("/proc/self/exe").value_or("memattach"));
}

/// How to come by CAP_SYS_PTRACE, for who the caller is.
std::string get_sys_ptrace(const AccessFacts& facts) {
    if (facts.caller.effective_uid == 0)
        return "this root lacks CAP_SYS_PTRACE: start the container with it (docker run --cap-add "
               "SYS_PTRACE; "
               "Kubernetes: securityContext.capabilities.add: [SYS_PTRACE]), or run memattach on the host";
    return fmt::format(
        "run it as root (sudo memattach …), or grant it once: sudo setcap cap_sys_ptrace+ep {}", own_path());
}

bool descends_from(int pid, int ancestor) {
    for (int depth = 0; depth < 1000 && pid > 1; ++depth) {
        const auto stat = read_stat(pid);
        if (!stat) return false;
        pid = stat->parent_pid;
        if (pid == ancestor) return true;
    }
    return false;
}

}  // namespace

Refusal explain(const AccessFacts& facts) {
    const Status& caller = facts.caller;
    const Status& target = facts.target;
    const bool privileged = has(caller.effective_capabilities, kCapSysPtrace);
    if (facts.error == ENOSYS || (caller.seccomp_mode == 2 && privileged && facts.error == EPERM &&
                                  facts.same_user_namespace && facts.yama_scope < 3))
        return {
            Obstacle::seccomp,
            fmt::format("memattach's own seccomp filter refuses to read process {} ({})", facts.pid,
                        base::errno_text(facts.error)),
            "run it outside of this container, or start the container with --security-opt seccomp=unconfined "
            "(or a profile that allows process_vm_readv and ptrace)"};
    if (privileged && !facts.same_user_namespace)
        return {
            Obstacle::user_namespace,
            fmt::format("process {} lives in another user namespace, where memattach's CAP_SYS_PTRACE counts "
                        "for nothing",
                        facts.pid),
            "run it as root of the host, or inside: nsenter --user --target PID"};
    if (!privileged) {
        // The caller's real ids count for process_vm_readv (PTRACE_MODE_REALCREDS).
        if (caller.real_uid != target.real_uid || caller.real_uid != target.effective_uid ||
            caller.real_uid != target.saved_uid || caller.real_gid != target.real_gid ||
            caller.real_gid != target.effective_gid || caller.real_gid != target.saved_gid) {
            if (caller.real_uid == target.real_uid && caller.real_uid == target.effective_uid &&
                caller.real_uid == target.saved_uid)
                return {Obstacle::other_user,
                        fmt::format("process {} runs with group {} and memattach with group {}", facts.pid,
                                    target.effective_gid, caller.real_gid),
                        get_sys_ptrace(facts)};
            return {Obstacle::other_user,
                    fmt::format("process {} belongs to {} and memattach runs as {}", facts.pid,
                                user_name(target.effective_uid), user_name(caller.real_uid)),
                    get_sys_ptrace(facts)};
        }
        if (facts.proc_owner != target.effective_uid)
            return {Obstacle::not_dumpable,
                    fmt::format(
                        "process {} is protected (not dumpable: it changed its user, gained privileges at "
                        "exec, or asked for it with PR_SET_DUMPABLE)",
                        facts.pid),
                    get_sys_ptrace(facts)};
        if (!facts.same_user_namespace)
            return {Obstacle::user_namespace,
                    fmt::format("process {} lives in another user namespace", facts.pid),
                    "run it as root of the host, or inside: nsenter --user --target PID"};
        if ((target.permitted_capabilities & ~caller.permitted_capabilities) != 0)
            return {Obstacle::more_capabilities,
                    fmt::format("process {} has capabilities that memattach lacks", facts.pid),
                    get_sys_ptrace(facts)};
        if (facts.yama_scope == 1 && !facts.is_descendant)
            return {
                Obstacle::yama_ancestors,
                fmt::format("kernel.yama.ptrace_scope is 1, so only its ancestors may read process {}",
                            facts.pid),
                "run it as root (sudo memattach …), start the program through it (memattach -- COMMAND), or "
                "lift this: sudo sysctl kernel.yama.ptrace_scope=0"};
        if (facts.yama_scope == 2)
            return {Obstacle::yama_admin,
                    fmt::format("kernel.yama.ptrace_scope is 2, so reading process {} takes CAP_SYS_PTRACE",
                                facts.pid),
                    get_sys_ptrace(facts)};
    }
    if (facts.yama_scope >= 3)
        return {Obstacle::yama_nobody,
                fmt::format("kernel.yama.ptrace_scope is 3, so nobody may read process {}", facts.pid),
                "set kernel.yama.ptrace_scope to 0, 1 or 2 in /etc/sysctl.d/10-ptrace.conf and reboot; it "
                "can't be "
                "lowered before"};
    if (caller.seccomp_mode == 2)
        return {Obstacle::seccomp,
                fmt::format("memattach runs under a seccomp filter that may refuse to read process {} ({})",
                            facts.pid, base::errno_text(facts.error)),
                "run it outside of this container, or start the container with --cap-add SYS_PTRACE"};
    return {Obstacle::security_module,
            fmt::format("a security module refuses to read process {} ({})", facts.pid,
                        base::errno_text(facts.error)),
            "see the kernel's log (sudo dmesg | grep -iE 'apparmor|selinux|audit') for the rule"};
}

std::optional<AccessFacts> gather_access_facts(int pid) {
    AccessFacts facts;
    facts.pid = pid;
    const auto caller = read_status(::getpid());
    const auto target = read_status(pid);
    struct stat status {};
    if (!caller || !target || ::stat(fmt::format("/proc/{}/maps", pid).c_str(), &status) != 0)
        return std::nullopt;
    facts.caller = *caller;
    facts.target = *target;
    facts.proc_owner = status.st_uid;
    if (const auto scope = read_file("/proc/sys/kernel/yama/ptrace_scope"))
        std::from_chars(scope->data(), scope->data() + scope->size(), facts.yama_scope);
    facts.is_descendant = descends_from(pid, ::getpid());
    // The target's link can't be read without a weaker form of the permission in question. Where it can't,
    // and memattach itself is in a user namespace, the target is most likely outside of that.
    constexpr std::string_view kInitial = "user:[4026531837]";  // PROC_USER_INIT_INO, linux/proc_ns.h
    const auto own = read_link("/proc/self/ns/user");
    const auto theirs = read_link(fmt::format("/proc/{}/ns/user", pid));
    facts.same_user_namespace = !own || (theirs ? *own == *theirs : *own == kInitial);
    return facts;
}

std::optional<Refusal> find_obstacle(int pid) {
    // Address 0 is mapped nowhere: where reading is allowed, the answer is EFAULT.
    char byte = 0;
    iovec local{&byte, 1};
    iovec remote{nullptr, 1};
    errno = 0;
    const ssize_t got = ::process_vm_readv(pid, &local, 1, &remote, 1, 0);
    const int error = errno;
    if (got >= 0 || error == EFAULT || error == ESRCH) return std::nullopt;
    auto facts = gather_access_facts(pid);
    if (!facts) return std::nullopt;
    facts->error = error;
    return explain(*facts);
}

}  // namespace memattach::process
