/// What a program allocates when nobody stops it, seen in a copy of it.
///
/// A stop costs a thread some 4 µs of its own CPU time and leaves its caches cold. Where 50 ns of its own lie
/// between two allocations, stopping at each of them shows which they are, but not how much of the program's
/// time has passed: not by any clock of the machine, short of a counter of instructions, which virtual
/// machines rarely have. So the program itself isn't stopped more than once a window: at a random moment, any
/// thread that runs. Its registers and the pages that its code is known to touch are read; it goes on, and
/// what it does next is executed once more, in a process of our own that has these pages at the same
/// addresses. There a counter is put in front of every allocation function, and any number of allocations can
/// be stopped at:
///
///     tracing process        keeper                             shadow
///     a thread's registers → sets the registers, lets it go; → runs what comes next, up to the first
///     (the thread is held);  brings the pages that it misses    system call or fault
///     both read the pages
///     that the keeper knows
///     the thread goes on   ← and lets it go again, to count   → the same
///                            and to time;
///                            and to look at some allocations  → the same, stopping at them
///     hits and own time    ← samples, their window
///
/// The result is a window as one in the target itself would be: a stretch of own time of known length at a
/// random moment, the allocations that were sampled in it, and those of them that were freed in it.
///
/// A state is run several times: to find the pages that it needs, while the thread is held where many are
/// new; until the processor is warm and the fastest run is known, which counts (in one of eight states: in
/// the others a few runs tell); to stop at some allocations. When it began, and every few allocations, it
/// notes the time itself, by the processor's time stamp counter, so that neither what lies before and behind
/// a run nor what it waits for is in its time. What a program needs is known after some tens of states, and
/// read anew for each (some hundred pages): a page is forgotten when it isn't missed where it is left out. A
/// page that is missed when the thread has been let go is read then: most memory doesn't change in a
/// millisecond, and where a run goes astray because of it the window ends before that page. A run that can't
/// go as far as it was to (a system call) would hide what comes behind such places: windows are as short as
/// nearly all can be in full (GroupSchedule), and where even that is too long and hits are far enough apart,
/// windows in the target are better.
///
/// No two processors are equally fast: on a virtual machine each may be half as fast as the other by turns,
/// because of what its host runs next to it. The target's does a fixed piece of work for every state, the
/// shadow's before and after each run, and own time is told as it would have been on the target's. Now and
/// then a state is run there as well (which the target does without meanwhile), for what the fixed work
/// doesn't tell.
///
/// A shadow does what the program does outside of the kernel: its windows stand for that part of its time.
///
/// The shadow can do nothing but compute. It has no memory in common with the target (its data pages are
/// its keeper's, which writes them back for each run), it is traced with PTRACE_SYSEMU, so that no system
/// call of it is executed, and a seccomp filter kills it for any that were; it dies with its keeper. Which
/// pages it misses is told by userfaultfd(2); the thread is held for some hundreds of µs where they are known
/// from the last time, for up to kLongestHoldNs where they aren't. Where there is no userfaultfd (Linux <
/// 4.11, containers that forbid it) there is no shadow, and dense windows go by the CPU clock.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "memattach/probe/page_reads.h"
#include "memattach/probe/planned_site.h"
#include "memattach/probe/trace_ring.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"

namespace memattach::probe {

struct PatchTable;

/// A window that a shadow is asked for. Times in ns.
struct ShadowWindow {
    std::uint64_t id = 0;
    trace::AllocKind group = trace::AllocKind::malloc;  ///< malloc (with mmap) or object
    double own_ns = 0;                                  ///< how long it is to be
    double span_ns = 0;                                 ///< what it stands for
    std::uint64_t start_wall_ns = 0;
    double own_spread = 0;  ///< trace::Window::own_spread, without the shadow's own
    /// Larger requests to malloc are another group's (large_entry.h); 0: there is none.
    std::uint64_t limit_bytes = 0;
};

/// What came of it: so many hits of the group's sites in so much own time, the whole window.
struct ShadowResult {
    bool ran = false;       ///< else nothing could be measured, and nothing was told
    bool complete = false;  ///< it went as far as it was to
    double own_ns = 0;
    double hits = 0;
    double bytes = 0;
    double work_ns = 0;   ///< that the keeper and the shadow had with it
    double taken_ns = 0;  ///< of that, on the processor where the thread runs
    bool spoilt = false;  ///< nothing was told, which says nothing about the next one
};

/// Memory that the tracing process, the keeper and the analysing process share; filled with zeros is empty.
struct ShadowShared {
    static constexpr std::size_t kPageBytes = 4096;
    static constexpr std::size_t kStateBytes = 16384;  ///< with AMX's tiles an XSAVE area has 11 KB
    enum State : std::uint32_t {
        asleep = 0,
        preparing,  ///< the keeper's turn: makes a shadow
        idle,
        submitted,    ///< the keeper's turn
        done,         ///< the tracing process's turn, then idle
        unavailable,  ///< for good
    };

    std::atomic<std::uint32_t> state;
    std::atomic<std::uint32_t> announced;  ///< by the tracing process: it is about to submit something
    std::array<ShadowWindow, 2> windows;   ///< of the same state, each of another group
    std::uint32_t window_count;
    std::int32_t tid;
    std::int32_t tracer_cpu;  ///< −1: unknown
    user_regs_struct registers;
    std::uint64_t state_bytes;
    alignas(64) std::array<std::byte, kStateBytes> extended_state;

    /// log_slowness() of the thread's processor, by the tracing process; 0: not yet.
    std::atomic<double> slowness_there;

    /// What is to be read of the next state: listed by the keeper, read by both.
    PageReads reads;
    std::atomic<std::uint32_t> released;   ///< by the keeper: the thread needn't be held any more
    std::atomic<std::uint32_t> hold_over;  ///< by the tracing process: it isn't

    std::array<ShadowResult, 2> results;  ///< of `windows`
    std::atomic<std::uint64_t> samples;
    TraceRing ring;  ///< samples, their frees, contents and windows, for the analysing process
};

/// The tracing process's side.
class Shadow {
  public:
    /// `wake_fd`: the eventfd that the keeper waits for. `target` must outlive this.
    Shadow(ShadowShared& shared, int wake_fd, const process::Memory& target)
        : shared_(shared), wake_fd_(wake_fd), target_(target) {}

    /// False once it is known that there are no shadows here.
    [[nodiscard]] bool is_available() const;
    /// Whether submit() would be taken. Asked for the first time it has a shadow made.
    [[nodiscard]] bool is_ready();
    /// A thread has been asked to stop. Being woken takes as long as that does.
    void announce();
    /// `tid` is stopped and would go on with `registers`. Returns when it may. `windows`: one, or one of each
    /// group, which the same state is for then. `own_cpu`: where the calling process is pinned to, or −1.
    void submit(std::span<const ShadowWindow> windows, pid_t tid, const user_regs_struct& registers,
                int own_cpu);
    /// The results of what was submitted, once they are there.
    [[nodiscard]] std::optional<std::array<ShadowResult, 2>> take();

    static constexpr std::uint64_t kLongestHoldNs = 1'500'000;

  private:
    void wake();

    ShadowShared& shared_;
    int wake_fd_;
    const process::Memory& target_;
};

struct KeeperFiles {
    int wake_fd = -1;
    int alive_fd = -1;   ///< reads end of file when the tracing process has ended
    int notify_fd = -1;  ///< an eventfd that is written to when there is something in the ring
};

/// The keeper's process: serves what is submitted until the tracing process ends. `patches`: what the
/// target's code must be read without. `unmapped_in_shadow`: what it shares with others.
[[noreturn]] void keep_shadow(pid_t target, const python::Runtime& runtime, const SiteMap& map,
                              std::span<const PlannedSite> sites, const PatchTable& patches,
                              ShadowShared& shared, const KeeperFiles& files,
                              std::span<const std::span<std::byte>> unmapped_in_shadow);

}  // namespace memattach::probe
