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
#include <vector>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/shadow.h"
#include "memattach/process/maps.h"
#include "shadow_counter.h"
#include "shadow_kernel.h"
#include "shadow_vdso.h"

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
    [[nodiscard]] ShadowKernel& kernel() { return kernel_; }
    /// The runs that follow are of another state: they all read the same time.
    void begin_state();
    /// The beginning of a run.
    bool set_state(user_regs_struct registers, std::span<const std::byte> extended_state);

    enum class End : std::uint8_t {
        limit,
        missing_page,  ///< `page`, which wasn't filled
        stopped,       ///< a system call, a fault, an int3
        gone,
    };
    struct Run {
        End end = End::gone;
        std::uint64_t page = 0;
        /// That the thread used: with what starting and stopping it costs, once, and what the system calls
        /// would have cost.
        std::uint64_t cpu_ns = 0;
        std::uint64_t calls = 0;  ///< system calls that were answered
    };
    /// Lets it go on for `limit_ns` of wall time. `on_missing(page)` is asked for each page that isn't there:
    /// true where it has been filled. `at_end`: as soon as it won't be asked any more.
    Run run(std::uint64_t limit_ns, const std::function<bool(std::uint64_t)>& on_missing,
            const std::function<void()>& at_end = {});
    /// The same up to a moment of the monotonic clock, and not timed: a system call or two less for each of
    /// many short runs. `left`, where there is one, is asked at that moment for a later one; 0: none.
    End go_on(std::uint64_t until_ns, const std::function<bool(std::uint64_t)>& on_missing,
              const std::function<std::uint64_t()>& left = {}, const std::function<void()>& at_end = {});
    /// CPU time of a run that does nothing; 0: something is refused here, and nothing else may be called.
    [[nodiscard]] std::uint64_t empty_run_ns() const { return empty_ns_; }
    /// Where it runs from now on.
    void set_cpu(int cpu);
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
    void layout_stubs(const Options& options);
    void map_room(std::span<const process::Mapping> mappings, std::span<const std::uint64_t> taken);
    [[noreturn]] void become_shadow(const Options& options, pid_t keeper, std::uint32_t* ready) const;
    bool write_code();
    void patch(std::uint64_t page, std::span<std::byte> content) const;
    void measure_switches();
    std::uint64_t least_cpu_ns(std::uint64_t pc);
    bool answer_call();
    void inline_call(std::uint64_t behind, std::uint32_t result);
    bool write_vdso();
    bool wait_stopped();
    void set_timer(std::uint64_t at_ns) const;
    [[nodiscard]] std::uint64_t thread_cpu_ns() const;

    static constexpr std::uint64_t kPage = ShadowShared::kPageBytes;
    /// The code that counts and the counters, close enough to the sites for a jump.
    static constexpr std::uint64_t kStubBytes = kPage + kCounterBytes;
    /// At the end of the code: system calls to measure, mov eax, SYS_sched_yield; syscall.
    static constexpr std::array<std::uint8_t, 7> kCall{0xB8, 24, 0, 0, 0, 0x0F, 0x05};
    static constexpr std::size_t kCalls = 8, kCallsBytes = 64;
    struct StubArea {
        std::uint64_t at = 0;
        std::array<std::byte, kPage> code;  ///< int3 where there is nothing
        std::size_t used = 0;
    };
    struct Patch {
        std::uint64_t address = 0;
        std::byte value{};
    };
    std::vector<StubArea> areas_;
    std::vector<Patch> patches_;
    std::unordered_map<std::uint64_t, std::size_t> stops_;       ///< by pc
    std::vector<std::pair<std::uint64_t, std::uint64_t>> room_;  ///< from, to
    std::array<bool, 2> counts_{true, true};
    ShadowKernel kernel_;
    std::uint64_t empty_ns_ = 0;                 ///< what letting it go and stopping it takes of its CPU time
    std::uint64_t call_ns_ = 0;                  ///< what a system call that is answered takes of it
    std::uint64_t calls_ = 0;                    ///< answered in the present run
    std::uint64_t deadline_ns_ = 0;              ///< what the timer is set to
    std::optional<user_regs_struct> registers_;  ///< of the thread, as long as it stands
    std::optional<ShadowVdso> vdso_;
    pid_t pid_ = -1;
    base::UniqueFd faults_, schedstat_, memory_, timer_;
};

}  // namespace memattach::probe
