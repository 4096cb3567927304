#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "memattach/base/unique_fd.h"
#include "memattach/process/memory.h"
#include "memattach/profile/profile.h"
#include "memattach/python/layout.h"

namespace memattach::session {

/// What a report says about a process: command line, executable, Python's version.
profile::Target describe_target(int pid, const python::Runtime& runtime);

/// "3.11.2", "3.14.0rc2", "3.13.1 free-threaded"
std::string version_text(const python::Runtime& runtime);

/// False for a free-threaded build whose GIL isn't on now (PYTHON_GIL=1 or an extension module turn it on).
bool has_gil(const process::Memory& memory, const python::Runtime& runtime);

/// Now, RFC 3339 in UTC.
std::string now_text();

/// How much memory the process may use: its cgroup's limit (v2 or v1) or the machine's memory.
std::optional<double> memory_limit_bytes(int pid);

/// Resident memory now; nothing where the process is gone.
std::optional<double> rss_bytes(int pid);

/// CPU time of all threads that the process ever had, exact.
std::optional<std::uint64_t> process_cpu_ns(int pid);

/// How a process ended.
enum class Ending : std::uint8_t { running, exited, killed, unknown };

/// Notices when a process ends, and how, also where it isn't our child.
class ProcessEnd {
  public:
    explicit ProcessEnd(int pid);
    [[nodiscard]] int fd() const { return fd_.get(); }  ///< −1 where the kernel has no pidfd (before 5.3)
    [[nodiscard]] bool has_ended() const;
    /// After it has ended.
    [[nodiscard]] Ending how() const;
    /// Changes when the process execs.
    [[nodiscard]] bool has_execed() const;

  private:
    int pid_;
    base::UniqueFd fd_;
    std::string auxv_;
    std::uint64_t start_ticks_ = 0;
};

}  // namespace memattach::session
