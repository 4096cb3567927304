#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/shadow.h"
#include "memattach/process/maps.h"
#include "shadow_counter.h"
#include "shadow_kernel.h"
#include "shadow_vdso.h"
#include "tick_clock.h"

namespace memattach::probe {

/// malloc and mmap: 0; objects: 1.
inline std::size_t group_of(trace::AllocKind kind) {
    return kind == trace::AllocKind::object ? 1 : 0;
}

/// What the program writes to: also what is reserved without access, which may be opened any time (glibc's
/// arenas).
inline bool holds_data(const process::Mapping& mapping) {
    return mapping.writable || (!mapping.readable && mapping.inode == 0);
}

/// A process whose memory has the target's layout and none of its contents: every page is missing until
/// fill() brings it, or the store has it. Dies with the calling process. Not for several threads.
class ShadowSpace {
  public:
    struct Options {
        const process::Memory& target;
        std::span<const process::Mapping> mappings;
        std::span<const PlannedSite> sites;  ///< at most ShadowCounters::kSites
        /// What the calling process shares with others, and the shadow must not reach.
        std::span<const std::span<std::byte>> unmapped;
        ShadowCounters* counters = nullptr;  ///< kCounterBytes of shared memory
        int data_fd = -1;                    ///< ShadowStore::fd(): the pages that the target may write to
    };
    explicit ShadowSpace(const Options& options);
    ~ShadowSpace();
    ShadowSpace(const ShadowSpace&) = delete;
    ShadowSpace& operator=(const ShadowSpace&) = delete;

    /// Which groups have a counter at every site (group_of()).
    [[nodiscard]] bool counts(std::size_t group) const { return counts_[group]; }
    [[nodiscard]] pid_t pid() const { return pid_; }

    /// Puts a missing page of code or constants in place. False where nothing is mapped there.
    bool fill(std::uint64_t page, std::span<const std::byte> content);
    /// A page that it waits for is in the store now.
    bool wake(std::uint64_t page);
    /// Has the shadow read and write each of these pages, which are in the store: the first access to a page
    /// takes as long as hundreds of allocations, and must not be in a run. Contents stay as they are.
    void touch(std::span<const std::uint64_t> pages);
    [[nodiscard]] ShadowKernel& kernel() { return kernel_; }
    /// What the sites lead to in the runs that follow. False where that can't be written.
    bool use(Stubs stubs);
    /// The runs that follow are of another state: they all read the same time, of the monotonic clock.
    void begin_state(std::uint64_t time_ns);
    /// The beginning of a run. It begins to count its marks.
    bool set_state(user_regs_struct registers, std::span<const std::byte> extended_state);

    enum class End : std::uint8_t {
        limit,
        missing_page,  ///< one that wasn't filled
        stopped,       ///< a system call, a fault, an int3
        gone,
    };
    struct Run {
        End end = End::gone;
        bool has_begun = false;
        /// Of the thread, from its first instruction: without what it waited for pages and for answers to
        /// system calls, more or less, with what the calls would have taken outside of the kernel.
        double own_ns = 0;
        /// The same up to each of its marks (ShadowCounters), in order.
        std::vector<double> marks_ns;
    };
    /// Runs a state that has just been set for `limit_ns` of its own time. `on_missing(page)` is asked for
    /// each page that isn't there: true where it has been filled. `at_end`: as soon as it won't be asked any
    /// more.
    Run run(std::uint64_t limit_ns, const std::function<bool(std::uint64_t)>& on_missing,
            const std::function<void()>& at_end = {});
    /// Lets it go on up to a moment of the monotonic clock. `left`, where there is one, is asked at that
    /// moment for a later one; 0: none.
    End go_on(std::uint64_t until_ns, const std::function<bool(std::uint64_t)>& on_missing,
              const std::function<std::uint64_t()>& left = {}, const std::function<void()>& at_end = {});
    /// False where something is refused here; then nothing else may be called.
    [[nodiscard]] bool is_ready() const { return ready_; }
    /// Where it runs from now on. False where it can't.
    bool set_cpu(int cpu);
    /// Where the last run ended.
    [[nodiscard]] std::optional<user_regs_struct> registers();
    bool set_registers(user_regs_struct registers);
    /// The site whose stub stopped it, where the pc is `pc`.
    [[nodiscard]] std::optional<std::size_t> stopped_at(std::uint64_t pc) const;
    /// A byte of code; returns what was there.
    std::optional<std::byte> write_byte(std::uint64_t address, std::byte value);
    /// Whether the last run was stopped by a signal of its own doing, SIGSEGV and its kin, or was about to
    /// say that its heap is corrupted (__libc_message() in glibc's sysdeps/posix/libc_fatal.c).
    [[nodiscard]] bool has_faulted();
    /// Whether `pc` is in code that isn't as the target has it.
    [[nodiscard]] bool replaces(std::uint64_t pc) const {
        return vdso_ && pc - vdso_->start() < vdso_->size_bytes();
    }
    /// Where the last run was stopped by a reference to memory that isn't mapped.
    [[nodiscard]] std::optional<std::uint64_t> unmapped_address() const;

  private:
    static constexpr std::uint64_t kPage = ShadowShared::kPageBytes;
    struct StubArea {
        std::uint64_t at = 0;
        std::array<std::byte, kPage> code;  ///< int3 where there is nothing
        std::size_t used = 0;
    };

    void layout_stubs(const Options& options);
    void map_room(std::span<const process::Mapping> mappings, std::span<const std::uint64_t> taken);
    [[noreturn]] void become_shadow(const Options& options, pid_t keeper, std::uint32_t* ready) const;
    bool write_code();
    StubArea* area_for(const Options& options, std::uint64_t site, std::vector<std::uint64_t>& taken);
    bool patch(std::uint64_t page, std::span<std::byte> content) const;
    void measure_switches(int data_fd);
    double least_ns(std::uint64_t pc, const std::function<bool(std::uint64_t)>& on_missing,
                    const std::function<bool()>& before = {});
    bool answer_call();
    void inline_call(std::uint64_t behind, std::uint32_t result);
    bool write_vdso();
    bool wait_stopped();
    void set_timer(std::uint64_t at_ns) const;
    void begin_marks(std::uint64_t entry);
    [[nodiscard]] double present_ns(std::uint64_t ticks) const;
    void add_stall(std::uint64_t marks, double besides_ns);
    static void lay_tail(StubArea& area);

    /// The code that counts and the counters, close enough to the sites for a jump.
    static constexpr std::uint64_t kStubBytes = kPage + kCounterBytes;
    /// At the end of the code: system calls to measure, mov eax, SYS_sched_yield; syscall.
    static constexpr std::array<std::uint8_t, 7> kCall{0xB8, 24, 0, 0, 0, 0x0F, 0x05};
    static constexpr std::size_t kCalls = 8, kCallsBytes = 64;
    /// Before them: pages to miss, mov rax, [rdi + 4096 * k].
    static constexpr std::size_t kTouches = 4, kTouchesBytes = 32;
    /// Before them: touches the pages whose addresses are at rsi, rcx of them.
    static constexpr std::array<std::uint8_t, 15> kTouchAll{
        0x48, 0x8B, 0x06,        // next: mov rax, [rsi]
        0x8A, 0x10, 0x88, 0x10,  // mov dl, [rax]; mov [rax], dl
        0x48, 0x83, 0xC6, 0x08,  // add rsi, 8
        0xE2, 0xF3, 0xCC, 0xCC,  // loop next; int3
    };
    static constexpr std::size_t kTouchAllBytes = 16;
    static constexpr std::size_t kTailBytes =
        kCallsBytes + kTouchesBytes + kTouchAllBytes + sizeof(EntryStub::code);
    /// The first bytes of a site, with either kind of stubs.
    struct Patch {
        std::uint64_t address = 0;
        std::array<std::array<std::byte, CounterStub::kJumpBytes>, 2> bytes{};
    };
    [[nodiscard]] std::span<const std::byte> present(const Patch& patch) const {
        return patch.bytes[static_cast<std::size_t>(stubs_)];
    }
    std::vector<StubArea> areas_;
    std::vector<Patch> patches_;
    Stubs stubs_ = Stubs::counting;
    std::unordered_set<std::uint64_t> filled_;                   ///< pages of code that have patches
    std::unordered_map<std::uint64_t, std::size_t> stops_;       ///< by pc
    std::vector<std::pair<std::uint64_t, std::uint64_t>> room_;  ///< from, to
    std::array<bool, 2> counts_{true, true};
    ShadowKernel kernel_;
    ShadowCounters* counters_ = nullptr;
    TickClock ticks_;
    /// It waited for a page or an answer when it had set so many marks.
    struct Stall {
        std::uint64_t marks = 0;
        double ns = 0;
    };
    bool ready_ = false;
    double stop_ns_ = 0;
    double call_ns_ = 0;           ///< what a call's way into this process and back takes
    double fault_ns_ = 0;          ///< what a missing page's does
    double starting_ns_ = 20'000;  ///< from letting it go to its first instruction
    std::vector<Stall> stalls_;    ///< of the present run
    double stalled_ns_ = 0;
    std::uint64_t calls_ = 0;                    ///< answered in the present run
    std::uint64_t arena_ = 0;                    ///< room that nothing of the target is in
    std::uint64_t end_ticks_ = 0;                ///< when this process last heard of it
    std::uint64_t deadline_ns_ = 0;              ///< what the timer is set to
    std::optional<user_regs_struct> registers_;  ///< of the thread, as long as it stands
    std::optional<ShadowVdso> vdso_;
    pid_t pid_ = -1;
    base::UniqueFd faults_, memory_, timer_;
};

}  // namespace memattach::probe
