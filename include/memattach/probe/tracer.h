/// The mechanism of the ptrace engine: attaches to every thread of a process, plants breakpoints, carries
/// displaced instructions out, and passes everything else on as if nobody were looking. What a hit means is
/// its client's business.
///
///     Tracer tracer(pid, table, client);
///     tracer.attach();                    // throws base::Error
///     tracer.plant(address, decode(bytes));
///     tracer.run();                       // serves stops, calls client.on_hit(), until client or target
///     ends it tracer.detach();                    // nothing is left behind
///
/// Runs in a process of its own (trace_process.h), single-threaded: waitpid(-1) is its event loop.
///
/// Order within a hit: the displaced instruction is carried out and the registers are written first; then the
/// client looks at the thread. Should this process be killed, the kernel lets the thread run on from there
/// (exit_ptrace(), kernel/ptrace.c; a stop that has been waited for delivers no signal). A thread that is
/// caught between waitpid and that write is set back by the analysing process (src/probe/rescuer.h); what is
/// left is one that traps and isn't waited for any more.
#pragma once

#include <sys/types.h>
#include <sys/user.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/base/unique_fd.h"
#include "memattach/probe/cpu_occupants.h"
#include "memattach/probe/emulate.h"
#include "memattach/probe/patches.h"
#include "memattach/probe/target_clock.h"

namespace memattach::probe {

class Tracer;

/// What the target's threads were held for. Times are this process's own measurements, from the return of
/// waitpid to the continuation, plus for each stop what passes between the trap and waitpid's return and
/// between the continuation and the thread's next instruction: the mean of the null traps.
struct StopStats {
    std::uint64_t stops = 0;
    std::uint64_t hits = 0;
    std::uint64_t steps = 0;  ///< displaced instructions that had to be single-stepped
    std::uint64_t threads_started = 0;
    std::uint64_t stopped_ns = 0;
    std::uint64_t longest_ns = 0;
};

class TracerClient {
  public:
    TracerClient() = default;
    TracerClient(const TracerClient&) = delete;
    TracerClient& operator=(const TracerClient&) = delete;
    virtual ~TracerClient() = default;

    /// Thread `tid` reached the breakpoint at `address` and is stopped. `regs` are as they were there, before
    /// the displaced instruction; `tag` is what plant() was given. May plant and remove breakpoints.
    virtual void on_hit(pid_t tid, std::uint64_t address, std::uint64_t tag,
                        const user_regs_struct& regs) = 0;
    /// After on_hit(). True: take this hit once more, for the time that it takes; on_null_trap() tells, after
    /// on_resumed() for the hit itself. `thread_ns` is what the thread's own processor time grew by,
    /// `wall_ns` from its continuation to the return of waitpid.
    virtual bool wants_null_trap() = 0;
    virtual void on_null_trap(std::uint64_t thread_ns, std::uint64_t wall_ns) = 0;
    /// The thread that interrupt_running() named has stopped, and goes on when this returns. `at_trap`: it
    /// has executed one of our int3s, and the signal for it is still to come.
    virtual void on_interrupted(pid_t tid, const user_regs_struct& regs, bool at_trap) = 0;
    /// A stop is over, and was `stopped_ns` long from the return of waitpid on. `hit`: on_hit() was called.
    virtual void on_resumed(std::uint64_t stopped_ns, bool hit) = 0;
    virtual void on_thread_end(pid_t tid) = 0;
    /// A process with a copy of the target's memory was made; it runs free of any change.
    virtual void on_child(pid_t child) = 0;
    /// The target replaced its program: breakpoints are gone, run() ends.
    virtual void on_exec() = 0;
    /// The thread group's leader is about to end and is held, its memory still there. True: hold on.
    virtual bool on_leader_exit() = 0;
    /// Called when due_ns() has come and whenever this process is signalled. `keep_running` false ends run().
    virtual void on_time(std::uint64_t now_ns, bool& keep_running) = 0;
    /// When on_time() wants to be called, at the latest (CLOCK_MONOTONIC); asked behind it and behind every
    /// stop.
    [[nodiscard]] virtual std::uint64_t due_ns() const = 0;
    /// Whether a leader that on_leader_exit() held may go now; asked at every on_time().
    virtual bool leader_may_go() = 0;
};

class Tracer {
  public:
    Tracer(pid_t pid, PatchTable& table, TracerClient& client);
    ~Tracer();
    Tracer(const Tracer&) = delete;
    Tracer& operator=(const Tracer&) = delete;

    /// Throws base::Error: gone, not permitted, traced by somebody else. Threads are not stopped by it.
    void attach();
    void run();
    /// Removes every change and lets go of the threads. Those that sleep in a system call aren't woken: they
    /// are released when this process ends, which has to follow at once. Never throws; may be called twice.
    void detach();

    /// False where the byte can't be changed. Planting where there is a breakpoint already only adds a use.
    /// `is_original`: that the byte is the original one has just been read.
    bool plant(std::uint64_t address, const std::optional<Instruction>& displaced, std::byte original,
               std::uint64_t tag, bool is_original = false);
    /// Takes back one plant(); the byte is restored with the last. `is_there`: that the int3 is there has
    /// just been read.
    void remove(std::uint64_t address, bool is_there = false);
    [[nodiscard]] bool planted(std::uint64_t address) const;
    /// Changes an aligned 8-byte pointer in the target's data, where it still is `original`.
    bool redirect(std::uint64_t slot, std::uint64_t original, std::uint64_t alias);
    void undo_redirect(std::uint64_t slot);

    /// 8 bytes of the memory of a stopped thread; one cheap system call.
    static std::optional<std::uint64_t> peek(pid_t tid, std::uint64_t address);
    /// A task of real-time priority that is to be woken by this process's death, and to run before any thread
    /// of the target can: it is kept on the processor of this process, which is that of the thread it serves.
    /// `tid` may be 0 for now.
    void keep_beside(const std::atomic<std::int32_t>& tid) { companion_ = &tid; }
    [[nodiscard]] int memory_fd() const { return memory_.get(); }
    [[nodiscard]] pid_t pid() const { return pid_; }
    /// So many threads of the target can run at a time.
    [[nodiscard]] std::size_t parallel() const { return std::min(threads_.size(), cpus_); }
    /// The processor time that all threads of the target have used, as TargetClock::read_late_ns() and
    /// read_ns() have it; the latter is 0 where that isn't exact.
    [[nodiscard]] std::uint64_t own_time_ns() const { return clock_.read_late_ns(); }
    [[nodiscard]] std::uint64_t exact_own_time_ns() const;
    [[nodiscard]] const StopStats& stats() const { return stats_; }
    /// What this process has used of its processor, which is that of the thread that it serves, besides
    /// stops: waking up at some time, arming, disarming. Since it was last asked, ns.
    [[nodiscard]] double take_work_ns() { return std::exchange(work_ns_, 0); }
    /// Asks a thread to stop that runs at present, any of them; one that sleeps isn't disturbed. Nothing
    /// where none runs.
    std::optional<pid_t> interrupt_running(std::mt19937_64& random);
    /// The processor that this process has pinned itself to; −1: none yet.
    [[nodiscard]] int cpu() const { return cpu_; }
    /// When waitpid returned with the stop that is being served.
    [[nodiscard]] std::uint64_t stop_start_ns() const { return stop_start_ns_; }
    [[nodiscard]] bool target_gone() const { return gone_; }

  private:
    struct Thread {
        bool foreign = false;           ///< of another process that runs on the same memory (vfork)
        bool interrupted = false;       ///< PTRACE_INTERRUPT was sent while detaching
        bool listens = false;           ///< in a stop that its process was sent, since PTRACE_LISTEN
        bool asked = false;             ///< by interrupt_running()
        bool fresh = false;             ///< its first stop is still to come
        std::uint64_t skip_hit_at = 0;  ///< a hit here was served, then interrupted by a signal: not again
        std::uint64_t rseq = 0;         ///< where the kernel notes its processor for it; 0: not known
    };
    struct Breakpoint {
        std::optional<Instruction> displaced;
        std::byte original{};
        std::uint64_t tag = 0;
        std::uint32_t uses = 0;  ///< 0: not planted now
        std::size_t patch = 0;
    };
    struct Removed {
        std::uint64_t address = 0;
        std::uint64_t original = 0;
        std::uint64_t patched = 0;
        std::uint32_t size_bytes = 0;
        std::uint64_t order = 0;  ///< of removals
    };

    void seize_all();
    void handle(pid_t tid, int status);
    void handle_signal_stop(pid_t tid, Thread& thread, int signal);
    static bool was_trap(pid_t tid);
    void handle_breakpoint(pid_t tid, Thread& thread, Breakpoint& breakpoint, user_regs_struct& regs);
    static pid_t wait_for(pid_t tid, int& status);
    std::optional<std::uint64_t> thread_time_ns(pid_t tid);
    bool take_null_trap(pid_t tid, const user_regs_struct& at_breakpoint, const user_regs_struct& behind);
    [[nodiscard]] bool is_sure(const Breakpoint& breakpoint, const user_regs_struct& regs) const;
    [[nodiscard]] static bool leads_on_alone(const Breakpoint& breakpoint);
    void account_stop(std::uint64_t go_ns);
    bool step(pid_t tid, Thread& thread, Breakpoint& breakpoint, std::uint64_t address);
    void handle_unknown(pid_t tid, int status);
    void handle_new_task(pid_t parent, int event);
    void adopt(pid_t child, bool shares_memory);
    void clean_copy(pid_t child);
    void release_orphans(std::uint64_t now_ns);
    void forget(pid_t tid);
    void resume(pid_t tid, int signal, bool event_stop);
    void remember_removed(const Removed& removed);
    void remember_all();
    [[nodiscard]] bool shares_memory(pid_t child) const;
    void housekeeping(std::uint64_t now_ns);
    void plan_wake(std::uint64_t now_ns);
    void account_wake(bool was_stop);
    void stay_beside(pid_t tid, Thread& thread);
    void judge_holding();
    void hold_thread(std::uint64_t now_ns);
    void follow_thread();
    [[nodiscard]] static std::optional<int> noted_cpu(pid_t tid, Thread& thread);
    [[nodiscard]] bool trap_pending(pid_t tid, const user_regs_struct& regs) const;

    pid_t pid_;
    PatchTable& table_;
    TracerClient& client_;
    base::UniqueFd memory_;
    std::unordered_map<pid_t, Thread> threads_;
    std::unordered_map<std::uint64_t, Breakpoint> breakpoints_;  ///< all that were ever planted
    std::unordered_map<std::uint64_t, std::size_t> redirects_;
    std::array<Removed, 1024> removed_{};
    std::uint64_t removals_ = 0;
    std::unordered_map<pid_t, bool> children_;          ///< announced, not stopped yet: shares memory?
    std::unordered_map<pid_t, std::uint64_t> orphans_;  ///< stopped, not announced yet: since when
    std::set<pid_t> released_;  ///< orphans that were adopted before their parent reported them
    pid_t held_leader_ = 0;
    std::uint64_t held_since_ns_ = 0;
    TargetClock clock_;
    StopStats stats_;
    std::uint64_t latency_ns_ = 0;
    base::UniqueFd thread_time_;  ///< the schedstat of the thread that was asked for its time last
    pid_t thread_time_of_ = 0;
    std::uint64_t stop_start_ns_ = 0;
    std::uint64_t served_address_ = 0;  ///< of the breakpoint whose hit the client is looking at
    bool hit_served_ = false;
    bool null_trap_over_ = false;
    std::uint64_t due_ns_ = 0;    ///< what the timer is set to
    std::uint64_t asked_ns_ = 0;  ///< the client's due_ns() then
    double work_ns_ = 0, wake_cost_ns_ = 0;
    std::uint64_t cpu_before_wake_ns_ = 0;  ///< this thread's, when it went to sleep; 0: not known
    std::uint64_t tail_start_ns_ = 0;       ///< when the stop that was served last had been let go
    std::uint64_t cpu_checked_ns_ = 0, moved_ns_ = 0;
    int companion_cpu_ = -1;
    std::size_t cpus_;                ///< of the machine
    int cpu_ = -1, thread_cpu_ = -1;  ///< of this process; of the thread that stopped last
    CpuOccupants occupants_;
    bool holds_ = true;   ///< threads are kept on their processor when they are let go
    int judged_ = 0;      ///< stops since that was decided, of those whose processor was asked for
    int held_stops_ = 4;  ///< so many until they are let go without for a trial
    const std::atomic<std::int32_t>* companion_ = nullptr;
    timer_t timer_{};
    bool timer_made_ = false;
    bool attached_ = false;
    bool detaching_ = false;
    bool keep_running_ = true;
    bool gone_ = false;
};

}  // namespace memattach::probe
