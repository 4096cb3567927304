/// What the target starts: threads, forked processes, and processes that run on its memory.
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memattach/base/clock.h"
#include "memattach/probe/tracer.h"
#include "tracer_task.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kOrphanNs = 100'000'000;

struct CloneKind {
    bool thread = false;
    bool shares_memory = false;
};

/// What the parent, stopped at its clone event, asked for. The event alone doesn't say: a clone with CLONE_VM
/// is reported as a fork where it asks for SIGCHLD (kernel/fork.c kernel_clone()).
CloneKind clone_kind(pid_t parent, int event) {
    user_regs_struct regs{};
    std::optional<std::uint64_t> flags;
    if (ptrace(PTRACE_GETREGS, parent, nullptr, &regs) == 0) {
        if (regs.orig_rax == SYS_fork) return {false, false};
        if (regs.orig_rax == SYS_vfork) return {false, true};
        if (regs.orig_rax == SYS_clone) flags = regs.rdi;
        if (regs.orig_rax == SYS_clone3) flags = Tracer::peek(parent, regs.rdi);
    }
    if (!flags) return {event == PTRACE_EVENT_CLONE, event != PTRACE_EVENT_FORK};
    return {(*flags & CLONE_THREAD) != 0, (*flags & CLONE_VM) != 0};
}

}  // namespace

void Tracer::handle_new_task(pid_t parent, int event) {
    unsigned long message = 0;
    if (ptrace(PTRACE_GETEVENTMSG, parent, nullptr, &message) != 0) return;
    const auto child = static_cast<pid_t>(message);
    if (threads_.count(child) != 0) {
        ++stats_.threads_started;
        released_.erase(child);
        return;
    }
    const CloneKind kind = is_thread_of(pid_, child) ? CloneKind{true, true} : clone_kind(parent, event);
    if (kind.thread) {
        ++stats_.threads_started;
        if (orphans_.erase(child) != 0) {
            threads_[child] = {};
            resume(child, 0, true);
        } else {
            threads_[child].fresh = true;
        }
        return;
    }
    if (released_.erase(child) != 0) return;
    if (orphans_.erase(child) != 0) {
        adopt(child, kind.shares_memory);
    } else {
        children_[child] = kind.shares_memory;
    }
}

/// The stop of a task that isn't known. Its parent's event may come before or after it.
void Tracer::handle_unknown(pid_t tid, int status) {
    if (status >> 16 != PTRACE_EVENT_STOP) {  // every traced task begins with this one
        ptrace(PTRACE_CONT, tid, nullptr,
               reinterpret_cast<void*>(status >> 16 == 0 ? static_cast<long>(WSTOPSIG(status)) : 0L));
        return;
    }
    const auto announced = children_.find(tid);
    if (announced != children_.end()) {
        const bool shares_memory = announced->second;
        children_.erase(announced);
        adopt(tid, shares_memory);
        return;
    }
    if (is_thread_of(pid_, tid)) {
        threads_[tid].fresh = true;
        handle(tid, status);
        return;
    }
    orphans_[tid] = stop_start_ns_;
}

/// `child`, a process of its own, is stopped before its first instruction.
void Tracer::adopt(pid_t child, bool shares_memory) {
    if (shares_memory) {
        // It runs on the target's text: its hits have to be served until it execs or ends.
        threads_[child].foreign = true;
        resume(child, 0, true);
        return;
    }
    clean_copy(child);
    ptrace(PTRACE_DETACH, child, nullptr, nullptr);
    client_.on_child(child);
}

void Tracer::clean_copy(pid_t child) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/mem", child);
    const base::UniqueFd memory(::open(path, O_RDWR | O_CLOEXEC));
    if (!memory.is_open()) return;
    undo_all_patches(table_, memory.get(), false);
    // What was removed from the target after its memory had been copied.
    for (const Removed& removed : removed_) {
        if (removed.address == 0) continue;
        if (read_word(memory.get(), removed.address, removed.size_bytes) == removed.patched) {
            write_word(memory.get(), removed.address, removed.original, removed.size_bytes);
        }
    }
}

/// Asked of the kernel where no parent has said it (kcmp(2), Linux 3.5 with CONFIG_KCMP).
bool Tracer::shares_memory(pid_t child) const {
    return ::syscall(SYS_kcmp, pid_, child, KCMP_VM, 0UL, 0UL) == 0;
}

/// A parent that was killed between the fork and its report announces nothing: its child is let go, clean.
/// One that only waits for a processor reports it later. A child of vfork that was taken for a copy meanwhile
/// lost the target its breakpoints and ran into the next ones, untraced.
void Tracer::release_orphans(std::uint64_t now_ns) {
    for (auto it = orphans_.begin(); it != orphans_.end();) {
        if (now_ns < it->second + kOrphanNs) {
            ++it;
            continue;
        }
        const pid_t child = it->first;
        it = orphans_.erase(it);
        released_.insert(child);
        adopt(child, shares_memory(child));
    }
}

}  // namespace memattach::probe
