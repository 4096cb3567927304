#include "memattach/probe/tracer.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/process/proc.h"
#include "tracer_task.h"

namespace memattach::probe {
namespace {

constexpr long kThreadOptions =
    PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC;
/// Only the leader's end is waited for: threads come and go by the thousand.
constexpr long kLeaderOptions = kThreadOptions | PTRACE_O_TRACEEXIT;

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kHoldExitNs = 500 * kMs;
constexpr std::uint64_t kSettleNs = 2000 * kMs;

volatile sig_atomic_t woken = 0;

void wake(int) {
    woken = 1;
}

void* option_bits(long options) {
    return reinterpret_cast<void*>(options);  // ptrace() takes every argument as a pointer
}

void* signal_number(int signal) {
    return reinterpret_cast<void*>(static_cast<long>(signal));
}

}  // namespace

Tracer::Tracer(pid_t pid, PatchTable& table, TracerClient& client)
    : pid_(pid),
      table_(table),
      client_(client),
      clock_(pid),
      cpus_(static_cast<std::size_t>(std::max(1L, sysconf(_SC_NPROCESSORS_CONF)))) {
    threads_.reserve(256);
    breakpoints_.reserve(1024);
    struct sigaction action {};
    action.sa_handler = wake;  // no SA_RESTART: waitpid has to return
    for (const int signal : {SIGALRM, SIGUSR1}) sigaction(signal, &action, nullptr);
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGALRM;
    timer_made_ = timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
    if (!timer_made_) base::throw_error("can't create a timer: {}", base::errno_text(errno));
}

Tracer::~Tracer() {
    detach();
    if (timer_made_) timer_delete(timer_);
}

void Tracer::attach() {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/mem", pid_);
    memory_.reset(::open(path, O_RDWR | O_CLOEXEC));
    if (!memory_.is_open()) throw_not_permitted(pid_, errno);
    attached_ = true;
    seize_all();
    clock_.follow();
}

/// A thread that is seized traces what it clones, so one pass over /proc that finds nothing new ends it.
void Tracer::seize_all() {
    for (bool found = true; found;) {
        found = false;
        for (const pid_t tid : tasks_of(pid_)) {
            if (threads_.count(tid) != 0) continue;
            const long options = tid == pid_ ? kLeaderOptions : kThreadOptions;
            if (ptrace(PTRACE_SEIZE, tid, nullptr, option_bits(options)) != 0) {
                if (errno == ESRCH) continue;
                // One that was cloned by a seized thread since the directory was read is ours already.
                if (errno == EPERM && tracer_of(pid_, tid) == getpid()) {
                    threads_[tid].fresh = true;
                    found = true;
                    continue;
                }
                throw_not_permitted(pid_, errno);
            }
            threads_[tid] = {};
            found = true;
        }
    }
    if (threads_.empty()) base::throw_error("process {} is gone", pid_);
}

void Tracer::run() {
    housekeeping(base::monotonic_ns());
    while (keep_running_) {
        int status = 0;
        const pid_t tid = waitpid(-1, &status, __WALL);
        stop_start_ns_ = tail_start_ns_ = base::monotonic_ns();
        if (tid > 0) {
            table_.stopped_tid.store(tid, std::memory_order_relaxed);
            handle(tid, status);
        } else if (errno == ECHILD) {
            gone_ = true;
            return;
        }
        if (woken != 0 || stop_start_ns_ >= due_ns_) {
            housekeeping(stop_start_ns_);
        } else if (client_.due_ns() != asked_ns_) {
            plan_wake(stop_start_ns_);  // else it would be woken for what has been done by now
        }
        account_wake(tid > 0);
    }
}

void Tracer::housekeeping(std::uint64_t now_ns) {
    woken = 0;
    client_.on_time(now_ns, keep_running_);
    if (held_leader_ != 0 && (client_.leader_may_go() || now_ns - held_since_ns_ > kHoldExitNs)) {
        const pid_t leader = held_leader_;
        held_leader_ = 0;
        ptrace(PTRACE_CONT, leader, nullptr, nullptr);
    }
    if (!orphans_.empty()) release_orphans(now_ns);
    plan_wake(now_ns);
}

void Tracer::handle(pid_t tid, int status) {
    ++stats_.stops;
    const auto found = threads_.find(tid);
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
        if (tid == pid_) {
            gone_ = true;
            keep_running_ = false;
        }
        forget(tid);
        children_.erase(tid);
        orphans_.erase(tid);
        return;
    }
    if (!WIFSTOPPED(status)) return;
    if (found == threads_.end()) {
        handle_unknown(tid, status);
        return;
    }
    Thread& thread = found->second;
    const int signal = WSTOPSIG(status);
    const int event = status >> 16;
    switch (event) {
        case 0:
            handle_signal_stop(tid, thread, signal);
            return;
        case PTRACE_EVENT_CLONE:
        case PTRACE_EVENT_FORK:
        case PTRACE_EVENT_VFORK:
            handle_new_task(tid, event);
            resume(tid, 0, true);
            return;
        case PTRACE_EVENT_EXEC:
            if (thread.foreign) {
                threads_.erase(found);
            } else {
                // The other threads are gone, and with them the memory that was changed (fs/exec.c
                // de_thread()).
                threads_.clear();
                for (auto& [address, breakpoint] : breakpoints_) breakpoint.uses = 0;
                undo_all_patches(table_, -1, true);
                redirects_.clear();
                clock_.forget();
                client_.on_exec();
                keep_running_ = false;
            }
            ptrace(PTRACE_DETACH, tid, nullptr, nullptr);
            return;
        case PTRACE_EVENT_EXIT:
            if (tid == pid_ && !detaching_ && client_.on_leader_exit()) {
                held_leader_ = tid;
                held_since_ns_ = stop_start_ns_;
                woken = 1;
                return;
            }
            resume(tid, 0, true);
            return;
        case PTRACE_EVENT_STOP:
            thread.listens = false;
            if (thread.fresh) {
                thread.fresh = false;
                ptrace(PTRACE_SETOPTIONS, tid, nullptr, option_bits(kThreadOptions));
            }
            if ((signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU) &&
                !detaching_) {
                thread.listens = true;
                ptrace(PTRACE_LISTEN, tid, nullptr, nullptr);  // stays stopped, as its sender wanted it
                return;
            }
            if (std::exchange(thread.asked, false) && !detaching_) {
                user_regs_struct regs{};
                if (ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return;
                client_.on_interrupted(tid, regs, trap_pending(tid, regs));
                stay_beside(tid, thread);
                resume(tid, 0, true);
                follow_thread();
                return;
            }
            resume(tid, 0, true);
            return;
        default:
            resume(tid, 0, true);
            return;
    }
}

void Tracer::handle_signal_stop(pid_t tid, Thread& thread, int signal) {
    if (signal == SIGTRAP) {
        user_regs_struct regs{};
        if (ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return;  // killed meanwhile
        const auto breakpoint = breakpoints_.find(regs.rip - 1);
        if (breakpoint != breakpoints_.end() && (is_sure(breakpoint->second, regs) || was_trap(tid))) {
            handle_breakpoint(tid, thread, breakpoint->second, regs);
            return;
        }
    }
    resume(tid, signal, false);
}

/// What an int3 raises, in contrast to a SIGTRAP that was sent: arch/x86/kernel/traps.c.
bool Tracer::was_trap(pid_t tid) {
    siginfo_t info{};
    return ptrace(PTRACE_GETSIGINFO, tid, nullptr, &info) == 0 && info.si_code == SI_KERNEL;
}

void Tracer::handle_breakpoint(pid_t tid, Thread& thread, Breakpoint& breakpoint, user_regs_struct& regs) {
    const std::uint64_t address = regs.rip - 1;
    const auto back_to_start = [&] {
        regs.rip = address;
        ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
        resume(tid, 0, false);
    };
    if (breakpoint.uses == 0) {  // removed since: the instruction is whole again
        back_to_start();
        return;
    }
    ++stats_.hits;
    stay_beside(tid, thread);
    PatchTable::Entry& patch = table_.entries[breakpoint.patch];
    patch.stack_phase.store(static_cast<std::uint32_t>(regs.rsp % 16 + 1), std::memory_order_relaxed);
    patch.hits.store(patch.hits.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    const user_regs_struct at_breakpoint = [&] {
        user_regs_struct copy = regs;
        copy.rip = address;
        return copy;
    }();
    ThreadMemory memory(tid);
    bool carried_out = leads_on_alone(breakpoint);
    if (!carried_out && breakpoint.displaced &&
        emulate(*breakpoint.displaced, base::Address(address), regs, memory)) {
        carried_out = ptrace(PTRACE_SETREGS, tid, nullptr, &regs) == 0;
    }
    if (!thread.foreign && thread.skip_hit_at != address) {
        served_address_ = address;
        client_.on_hit(tid, address, breakpoint.tag, at_breakpoint);
        served_address_ = 0;
        hit_served_ = true;
        // What is carried out twice must come to the same.
        const bool repeatable = !breakpoint.displaced || breakpoint.displaced->op == Op::push ||
                                !breakpoint.displaced->writes_memory();
        if (breakpoint.uses != 0 && repeatable && client_.wants_null_trap()) {
            // Should something else come in between, the thread gets here again: its hit has been served.
            thread.skip_hit_at = address;
            if (!take_null_trap(tid, at_breakpoint, carried_out ? regs : at_breakpoint)) return;
        }
    }
    thread.skip_hit_at = 0;
    if (carried_out) {
        resume(tid, 0, false);
    } else if (breakpoint.uses == 0) {
        regs = at_breakpoint;
        back_to_start();
    } else if (step(tid, thread, breakpoint, address)) {
        resume(tid, 0, false);
    }
    follow_thread();
}

/// waitpid for one thread that is about to stop. Where its whole process is killed first, a leader's end
/// isn't told before its other threads have been waited for (kernel/exit.c, delay_group_leader()), which only
/// run() does: the timer's signal ends the wait then, and −1 is returned.
pid_t Tracer::wait_for(pid_t tid, int& status) {
    while (true) {
        const pid_t waited = waitpid(tid, &status, __WALL);
        if (waited >= 0 || errno != EINTR) return waited;
        const auto stat = process::read_stat(tid);
        if (!stat || stat->state == 'Z' || stat->state == 'X') return -1;
    }
}

/// Sends the thread back onto the breakpoint that it was just served at, with the caches as the service left
/// them; then its registers are those of `behind`. False where something else came in between and has been
/// handled: the hit will come again.
bool Tracer::take_null_trap(pid_t tid, const user_regs_struct& at_breakpoint,
                            const user_regs_struct& behind) {
    user_regs_struct regs = at_breakpoint;
    if (ptrace(PTRACE_SETREGS, tid, nullptr, &regs) != 0) return false;
    const auto before_ns = thread_time_ns(tid);
    const std::uint64_t go_ns = base::monotonic_ns();
    account_stop(go_ns);
    if (ptrace(PTRACE_CONT, tid, nullptr, nullptr) != 0) return false;
    occupants_.leave(stop_start_ns_, go_ns);
    int status = 0;
    const pid_t waited = wait_for(tid, status);
    const std::uint64_t back_ns = base::monotonic_ns();
    stop_start_ns_ = back_ns;
    if (waited != tid) return false;
    hold_thread(back_ns);
    if (!WIFSTOPPED(status) || status >> 16 != 0 || WSTOPSIG(status) != SIGTRAP ||
        ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0 || regs.rip != at_breakpoint.rip + 1 ||
        !was_trap(tid)) {
        handle(tid, status);
        return false;
    }
    regs = behind;
    ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
    const auto after_ns = thread_time_ns(tid);
    if (before_ns && after_ns) client_.on_null_trap(*after_ns - *before_ns, back_ns - go_ns);
    latency_ns_ = latency_ns_ == 0 ? back_ns - go_ns : (7 * latency_ns_ + (back_ns - go_ns)) / 8;
    null_trap_over_ = true;
    ++stats_.stops;
    return true;
}

/// Executes the displaced instruction in place. Meanwhile other threads may pass unseen: a hit is lost, which
/// is less harm than interrupting the system calls of all of them. Returns false where the thread isn't
/// stopped any more.
bool Tracer::step(pid_t tid, Thread& thread, Breakpoint& breakpoint, std::uint64_t address) {
    ++stats_.steps;
    user_regs_struct regs{};
    if (ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return false;
    regs.rip = address;
    ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
    undo_patch(table_, memory_.get(), breakpoint.patch);
    remember_removed({address, std::to_integer<std::uint64_t>(breakpoint.original), 0xCC, 1});
    const auto plant_again = [&] {
        const auto patch = apply_patch(table_, memory_.get(), address,
                                       std::to_integer<std::uint64_t>(breakpoint.original), 0xCC, 1);
        if (patch) {
            breakpoint.patch = *patch;
        } else {
            breakpoint.uses = 0;
        }
    };
    for (int tries = 0; tries < 16; ++tries) {
        if (ptrace(PTRACE_SINGLESTEP, tid, nullptr, nullptr) != 0) break;
        int status = 0;
        const pid_t waited = wait_for(tid, status);
        if (waited != tid || !WIFSTOPPED(status)) {
            plant_again();
            if (waited == tid) handle(tid, status);
            return false;
        }
        if (status >> 16 != 0) {
            if (status >> 16 == PTRACE_EVENT_STOP) continue;
            plant_again();
            handle(tid,
                   status);  // a fork or exit can't come from a displaced instruction other than a syscall
            return false;
        }
        siginfo_t info{};
        ptrace(PTRACE_GETSIGINFO, tid, nullptr, &info);
        if (WSTOPSIG(status) == SIGTRAP && info.si_code == TRAP_TRACE) break;
        user_regs_struct now{};
        if (ptrace(PTRACE_GETREGS, tid, nullptr, &now) == 0 && now.rip == address) {
            // A signal came first (or the instruction faulted): its handler runs, then the thread is here
            // again.
            plant_again();
            thread.skip_hit_at = address;
            resume(tid, WSTOPSIG(status), false);
            return false;
        }
        plant_again();
        handle_signal_stop(tid, thread, WSTOPSIG(status));
        return false;
    }
    plant_again();
    return true;
}

void Tracer::forget(pid_t tid) {
    if (threads_.erase(tid) != 0) client_.on_thread_end(tid);
    if (held_leader_ == tid) held_leader_ = 0;
}

void Tracer::resume(pid_t tid, int signal, bool event_stop) {
    if (detaching_) {
        user_regs_struct regs{};
        const bool wait_for_trap =
            event_stop && ptrace(PTRACE_GETREGS, tid, nullptr, &regs) == 0 && trap_pending(tid, regs);
        if (!wait_for_trap) {
            ptrace(PTRACE_DETACH, tid, nullptr, signal_number(signal));
            forget(tid);
            return;
        }
    }
    ptrace(PTRACE_CONT, tid, nullptr, signal_number(signal));
    const std::uint64_t go_ns = base::monotonic_ns();
    occupants_.leave(stop_start_ns_, go_ns);
    tail_start_ns_ = go_ns;
    account_stop(go_ns);
}

/// The thread is let go. What follows a null trap is a few system calls of a stop that has been told already.
void Tracer::account_stop(std::uint64_t go_ns) {
    const std::uint64_t measured_ns = go_ns - stop_start_ns_;
    if (!null_trap_over_) client_.on_resumed(measured_ns, hit_served_);
    hit_served_ = null_trap_over_ = false;
    const std::uint64_t held_ns = measured_ns + latency_ns_;
    stats_.stopped_ns += held_ns;
    stats_.longest_ns = std::max(stats_.longest_ns, held_ns);
}

/// Whether the thread has executed one of our int3s and the signal for it still waits in its queue, as can be
/// where another stop came first.
bool Tracer::trap_pending(pid_t tid, const user_regs_struct& regs) const {
    if (breakpoints_.count(regs.rip - 1) == 0) return false;
    __ptrace_peeksiginfo_args args{};
    args.nr = 16;
    std::array<siginfo_t, 16> queue{};
    const long count = ptrace(PTRACE_PEEKSIGINFO, tid, &args, queue.data());
    for (long i = 0; i < count; ++i) {
        if (queue[static_cast<std::size_t>(i)].si_signo == SIGTRAP &&
            queue[static_cast<std::size_t>(i)].si_code == SI_KERNEL) {
            return true;
        }
    }
    return false;
}

void Tracer::detach() {
    if (!attached_) return;
    attached_ = false;
    detaching_ = true;
    // A child that was copied before this may be met after it.
    remember_all();
    undo_all_patches(table_, memory_.get(), true);
    for (auto& [address, breakpoint] : breakpoints_) breakpoint.uses = 0;
    redirects_.clear();
    if (held_leader_ != 0) {
        ptrace(PTRACE_CONT, held_leader_, nullptr, nullptr);
        held_leader_ = 0;
    }
    // A thread that runs may have executed an int3 that isn't there any more, with nothing to show for it
    // yet; it is stopped, looked at and released. One that sleeps can't have.
    const std::uint64_t start = base::monotonic_ns();
    while (base::monotonic_ns() - start < kSettleNs) {
        int status = 0;
        pid_t tid = 0;
        while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
            stop_start_ns_ = base::monotonic_ns();
            handle(tid, status);
        }
        if (tid < 0 && errno == ECHILD) return;
        release_orphans(base::monotonic_ns());
        bool unsettled = false;
        for (auto& [id, thread] : threads_) {
            const char state = state_of(id);
            if (state == 't') unsettled = true;
            // One stopped from outside may have hit an int3 just before: the signal for it still waits.
            if (state != 'R' && !thread.listens) continue;
            unsettled = true;
            if (!thread.interrupted) ptrace(PTRACE_INTERRUPT, id, nullptr, nullptr);
            thread.interrupted = true;
        }
        // A child that was announced and hasn't begun yet holds a copy of what was there.
        if (!unsettled && orphans_.empty() && children_.empty()) return;
        const timespec pause{0, 100'000};
        nanosleep(&pause, nullptr);
    }
}

}  // namespace memattach::probe
