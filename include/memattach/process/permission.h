/// Why a process can't be read, in one line that names what is missing and the command that gives it.
///
///     if (auto obstacle = find_obstacle(pid)) fmt::print("{}\n", obstacle->text());
///
/// The kernel answers EPERM for eight different reasons (ptrace_may_access in kernel/ptrace.c, yama_lsm.c,
/// cap_ptrace_access_check): this repeats its decision on the facts that /proc shows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "memattach/process/proc.h"

namespace memattach::process {

inline constexpr int kCapSysPtrace = 19;  // include/uapi/linux/capability.h

enum class Obstacle : std::uint8_t {
    other_user,         ///< uid or gid differs and CAP_SYS_PTRACE is missing
    not_dumpable,       ///< prctl(PR_SET_DUMPABLE, 0), a set-uid program, or an executable that can't be read
    more_capabilities,  ///< the target may do what the caller mayn't
    yama_ancestors,     ///< kernel.yama.ptrace_scope = 1: ancestors only
    yama_admin,         ///< = 2: CAP_SYS_PTRACE only
    yama_nobody,        ///< = 3: nobody, until the next boot
    user_namespace,     ///< the target lives in a user namespace where the caller has no power
    seccomp,            ///< the caller's own seccomp filter refuses the system call
    security_module,    ///< all of the above allow it: SELinux, AppArmor, …
};

/// All that the decision depends on; fields of the caller are memattach's own.
struct AccessFacts {
    int pid = 0;
    Status caller;
    Status target;
    std::uint32_t proc_owner =
        0;               ///< owner of /proc/PID/maps: the target's euid, or root where it isn't dumpable
    int yama_scope = 0;  ///< 0 where there is no yama
    bool is_descendant = false;  ///< the target descends from the caller
    bool same_user_namespace = true;
    int error = 0;  ///< errno of the refused read
};

struct Refusal {
    Obstacle obstacle{};
    std::string why;  ///< "process 12 belongs to alice (uid 1000) and memattach runs as bob (uid 1001)"
    std::string fix;  ///< "run it as root (sudo memattach …) or …"
    [[nodiscard]] std::string text() const { return why + ": " + fix; }
};

/// Decides on the facts alone.
Refusal explain(const AccessFacts& facts);

/// The facts on a process; nothing where it is gone.
std::optional<AccessFacts> gather_access_facts(int pid);

/// Tries to read a byte of the process's memory. Nothing where that works or where the process is gone.
std::optional<Refusal> find_obstacle(int pid);

}  // namespace memattach::process
