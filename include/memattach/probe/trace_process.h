#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/alloc_probe.h"
#include "memattach/probe/shadow.h"
#include "memattach/probe/sites.h"
#include "memattach/probe/trace_shared.h"
#include "memattach/python/layout.h"

namespace memattach::probe {

class Rescuer;

/// The small process that ptraces the target, as the analysing process sees it. Neither can harm the target
/// by dying:
///
///  - the analysing process ends, however: the kernel signals the tracing one, which removes every change,
///    lets go and ends;
///  - the tracing process ends before its time: the kernel lets go of the threads, and a thread that waits
///  here
///    for nothing else undoes every change that the shared table lists. It is woken by the end of a pipe,
///    which the kernel closes before it lets go (do_exit(): exit_files() comes before exit_notify()). What
///    remains: a thread that traps until then and isn't waited for any more dies of SIGTRAP.
class TraceProcess {
  public:
    /// Forks, attaches and arms; returns when that is done. Call it before there are other threads. Throws
    /// base::Error where the target can't be traced; it is unchanged then.
    TraceProcess(pid_t pid, const python::Runtime& runtime, const SiteMap& sites,
                 const AllocProbeOptions& options);
    ~TraceProcess();
    TraceProcess(const TraceProcess&) = delete;
    TraceProcess& operator=(const TraceProcess&) = delete;

    /// Readable when there is something in the ring, or the tracing process has ended.
    [[nodiscard]] int fd() const { return notify_.get(); }
    [[nodiscard]] TraceShared& shared() const { return *shared_; }
    [[nodiscard]] ShadowShared& shadow() const { return *shadow_; }
    [[nodiscard]] pid_t tracer_pid() const { return tracer_; }
    /// It was killed or crashed; what it had changed has been repaired.
    [[nodiscard]] bool died() const { return died_.load(std::memory_order_acquire); }
    [[nodiscard]] std::size_t repaired() const { return repaired_.load(std::memory_order_acquire); }

    /// Lets go of the target and waits for the tracing process to end. May be called twice; never throws.
    void stop();

  private:
    [[noreturn]] void trace(const python::Runtime& runtime, const SiteMap& sites,
                            const AllocProbeOptions& options);
    void start_keeper(pid_t analyser, const python::Runtime& runtime, const SiteMap& sites);
    void end_keeper();
    void watch();
    void repair();

    pid_t pid_;
    pid_t tracer_ = -1;
    pid_t keeper_ = -1;
    std::vector<PlannedSite> planned_;
    TraceShared* shared_ = nullptr;
    ShadowShared* shadow_ = nullptr;
    base::UniqueFd notify_;
    base::UniqueFd memory_;  ///< /proc/PID/mem, opened before anybody traces
    base::UniqueFd alive_;   ///< reads end of file once the tracing process is dying
    base::UniqueFd alive_write_;
    std::unique_ptr<Rescuer> rescuer_;
    base::UniqueFd wake_keeper_;
    std::thread watcher_;
    std::atomic<bool> died_{false};
    std::atomic<std::size_t> repaired_{0};
    bool stopped_ = false;
};

}  // namespace memattach::probe
