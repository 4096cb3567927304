#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace memattach::cli {

/// Numbers from include/uapi/linux/capability.h.
enum class Capability : std::uint8_t { sys_ptrace = 19, sys_admin = 21, perfmon = 38, bpf = 39 };

/// What this process may do and which of the machine's settings bear on it, as far as can be read.
struct Privileges {
    std::uint32_t effective_uid = 0;
    std::uint64_t capabilities = 0;  ///< effective
    int seccomp_mode = 0;            ///< 0 off, 1 strict, 2 filter
    bool initial_user_namespace = true;
    bool initial_pid_namespace = true;
    std::optional<int> ptrace_scope;  ///< kernel.yama.ptrace_scope; nothing where yama isn't loaded
    std::optional<int> perf_event_paranoid;
    std::optional<int> perf_event_mlock_kb;
    std::uint64_t open_files_limit = 0;
    std::string kernel;  ///< "Linux 6.1.0-21-amd64 x86_64"

    [[nodiscard]] bool has(Capability capability) const {
        return (capabilities >> static_cast<unsigned>(capability) & 1U) != 0;
    }
};
Privileges read_privileges();

/// What is found out by doing it, on a child that is made for it and ended again. Empty: it works; else why
/// it doesn't.
struct Trial {
    std::string read;   ///< process_vm_readv
    std::string trace;  ///< PTRACE_SEIZE
    std::string perf;   ///< a cpu-clock event
};
Trial try_on_child();

}  // namespace memattach::cli
