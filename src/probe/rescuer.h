#pragma once

#include <semaphore.h>
#include <sys/types.h>

#include <atomic>
#include <thread>
#include <vector>

#include "memattach/probe/patches.h"

namespace memattach::probe {

/// Real-time priority for the calling thread, where there is the right to it; else what can be had. Returns
/// whether it was had.
bool make_prompt();

/// When the tracing process is killed between waitpid() and the write of a thread's registers, that thread
/// would go on in the middle of an instruction as soon as the kernel lets go of it, and crash. This thread
/// sleeps beside the one that repairs the text; asked, it seizes that thread in the moment in which it is let
/// go, before it gets to run, and sets it back to the instruction's start. (A thread whose stop nobody had
/// waited for can't be helped: it dies of the SIGTRAP that it stopped with; kernel/signal.c ptrace_signal().)
class Rescuer {
  public:
    explicit Rescuer(const PatchTable& patches);
    ~Rescuer();
    Rescuer(const Rescuer&) = delete;
    Rescuer& operator=(const Rescuer&) = delete;

    /// The tracer of `pid` is dying; `last_stopped` is the thread that it saw stop last. Once; returns at
    /// once.
    void ask(pid_t pid, pid_t last_stopped);
    /// Waits, briefly and without giving up the processor, until it is prepared for the threads to be let go.
    void wait_ready() const;
    /// Waits until it is done, or ends it where it was never asked.
    void finish();

  private:
    void run();
    [[nodiscard]] std::vector<pid_t> stopped_threads() const;
    [[nodiscard]] std::vector<pid_t> seize(std::vector<pid_t> threads) const;
    void put_back(pid_t tid) const;

    const PatchTable& patches_;
    sem_t asked_;
    pid_t pid_ = 0;
    pid_t last_stopped_ = 0;
    std::atomic<bool> ready_{false};
    std::atomic<pid_t> own_tid_{0};
    std::atomic<bool> shares_processor_{true};
    std::thread thread_;
};

}  // namespace memattach::probe
