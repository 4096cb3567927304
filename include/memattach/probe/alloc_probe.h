/// What a breakpoint hit means to memory profiling: the Tracer's client in the tracing process.
///
///     entry of malloc(size)  → keep it? (a coin that size loads)
///        kept:  read the Python stack, break at the return address         …
///     return, same stack     → the block's address is in rax: tell the analysing process
///     entry of free(block)   → was it kept? tell
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <unordered_map>
#include <vector>

#include "memattach/probe/large_entry.h"
#include "memattach/probe/planned_site.h"
#include "memattach/probe/schedule.h"
#include "memattach/probe/shadow.h"
#include "memattach/probe/sites.h"
#include "memattach/probe/thread_states.h"
#include "memattach/probe/trace_shared.h"
#include "memattach/probe/tracer.h"
#include "memattach/process/proc.h"
#include "memattach/python/reader.h"

namespace memattach::probe {

struct AllocProbeOptions {
    double max_overhead = 0.05;
    double threshold_bytes = 1 << 20;
    std::uint64_t seed = 1;
};

class AllocProbe final : public TracerClient {
  public:
    /// `notify_fd`: an eventfd that is written to when there is something in the ring.
    AllocProbe(pid_t pid, const process::Memory& memory, const python::Runtime& runtime, const SiteMap& sites,
               std::vector<PlannedSite> planned, const AllocProbeOptions& options, TraceShared& shared,
               int notify_fd, Shadow& shadow);

    /// Once the tracer is attached: chooses the probe points and arms what is to be armed at first. Throws
    /// base::Error where no site can be watched.
    void start(Tracer& tracer);
    /// Before the tracer detaches: closes what is open.
    void finish();

    void on_hit(pid_t tid, std::uint64_t address, std::uint64_t tag, const user_regs_struct& regs) override;
    bool wants_null_trap() override;
    void on_null_trap(std::uint64_t thread_ns, std::uint64_t wall_ns) override;
    void on_interrupted(pid_t tid, const user_regs_struct& regs, bool at_trap) override;
    void on_resumed(std::uint64_t stopped_ns, bool hit) override;
    void on_thread_end(pid_t tid) override;
    void on_child(pid_t child) override;
    void on_exec() override;
    bool on_leader_exit() override;
    void on_time(std::uint64_t now_ns, bool& keep_running) override;
    [[nodiscard]] std::uint64_t due_ns() const override;
    bool leader_may_go() override;

  private:
    static constexpr std::array kKinds = {trace::AllocKind::malloc, trace::AllocKind::mmap,
                                          trace::AllocKind::object, trace::AllocKind::large};
    /// An allocation under way whose result is awaited.
    struct Call {
        std::size_t site = 0;
        std::uint64_t stack_pointer = 0;  ///< when it has returned
        std::uint64_t return_address = 0;
        std::uint64_t out = 0;  ///< posix_memalign: where the result will be
        std::uint64_t old = 0;  ///< realloc: the block that ends, if it is one of ours
        bool kept = false;
        bool in_tail = false;  ///< not kept: what is there now is all that it is to say
        TraceEvent event;
        std::vector<python::RawFrame> frames;
    };
    struct LastHit {
        std::size_t site = 0;
        std::uint64_t stack_pointer = 0;
        std::uint64_t return_address = 0;
    };
    struct ReturnPoint {
        std::optional<Instruction> displaced;
        std::byte original{};
    };
    struct Changing {
        std::size_t index = 0;  ///< of the site
        std::byte byte{};       ///< what is there now
    };
    struct ThreadCalls {
        std::vector<Call> calls;  ///< innermost last
        LastHit last;
    };

    /// `ends`: only what may end a block.
    enum class Armed : std::uint8_t { nothing, ends, all };
    void set_armed(trace::AllocKind kind, Armed armed);
    /// The blocks that were in use when a window of the group closed: most are freed very soon, and what
    /// takes their addresses may look like them and stay. Frees are watched for a little longer; of the large
    /// group, which has no site for frees, allocations: the next ones mostly are where the last ones were.
    struct Tail {
        std::uint64_t window = 0;
        std::unordered_map<std::uint64_t, std::uint64_t> blocks;  ///< of the window: when they were born
        std::uint64_t until_ns = 0;                               ///< 0: the window is open, or there is none
        std::uint32_t hits_left = 0;
        [[nodiscard]] bool is_watched() const { return until_ns != 0; }
    };
    [[nodiscard]] static bool has_tail(trace::AllocKind kind) { return kind != trace::AllocKind::mmap; }
    [[nodiscard]] Tail& tail_of(trace::AllocKind kind) { return tails_[static_cast<std::size_t>(kind)]; }
    void begin_tail(trace::AllocKind kind, std::uint64_t now_ns);
    void on_tail_hit(const Site& site, pid_t tid, const user_regs_struct& regs);
    void tail_block_ends(trace::AllocKind kind, pid_t tid, std::uint64_t block);
    void end_tail(trace::AllocKind kind);
    void end_tails(std::uint64_t now_ns);
    void apply_plan(std::uint64_t now_ns);
    void send_windows();
    void take_shadow();
    void ask_for_copy(trace::AllocKind kind);
    [[nodiscard]] bool is_inside_site(std::uint64_t pc) const;
    [[nodiscard]] bool in_window(trace::AllocKind kind);
    void on_entry(pid_t tid, std::size_t index, const user_regs_struct& regs);
    void find_large();
    void on_large(pid_t tid, const user_regs_struct& regs);
    void refuse_large();
    [[nodiscard]] std::uint64_t large_limit_bytes() const;
    [[nodiscard]] bool is_return_address(std::uint64_t address);
    [[nodiscard]] bool is_larges(const Site& site, std::uint64_t asked, const user_regs_struct& regs) const;
    void on_return(pid_t tid, std::uint64_t address, const user_regs_struct& regs);
    void begin_call(pid_t tid, std::size_t index, const user_regs_struct& regs, Call call);
    void end_call(pid_t tid, Call& call, const user_regs_struct& regs);
    void read_stack(const user_regs_struct& regs, Call& call, python::ReadAlong& along);
    void drop_stale(ThreadCalls& thread, std::uint64_t stack_pointer);
    void release(pid_t tid, std::uint64_t block, std::uint64_t size_bytes);
    void send(const TraceEvent& event, const std::vector<python::RawFrame>& frames);
    void notify(std::uint64_t now_ns, bool always);
    void publish_figures();
    void charge_work(Moment now);
    void keep_user_share(Moment now);
    [[nodiscard]] Moment moment(std::uint64_t now_ns, bool exact = false) const;

    pid_t pid_;
    const process::Memory& memory_;
    const SiteMap& map_;
    AllocProbeOptions options_;
    TraceShared& shared_;
    int notify_fd_;
    Shadow& shadow_;
    Tracer* tracer_ = nullptr;
    python::Runtime runtime_;
    python::StackReader reader_;
    ThreadStates thread_states_;
    ByteSampler sampler_;
    std::mt19937_64 random_;
    std::optional<Schedule> schedule_;
    std::optional<process::Stat> at_start_;  ///< of the target
    std::uint64_t share_read_ns_ = 0;
    Plan plan_;
    pid_t asked_tid_ = 0;                        ///< being stopped for a shadow
    std::optional<trace::AllocKind> shadow_of_;  ///< for whom the shadow is at work
    bool shadow_of_both_ = false;                ///< and for the other group, which it came in time for
    std::vector<PlannedSite> sites_;
    std::optional<LargeEntry> large_;  ///< the last of the sites
    bool large_refused_ = false;
    process::RecentMaps maps_;
    std::array<Armed, kKinds.size()> armed_{};  ///< by AllocKind
    std::array<Tail, kKinds.size()> tails_;     ///< likewise
    std::unordered_map<pid_t, ThreadCalls> threads_;
    std::unordered_map<std::uint64_t, ReturnPoint> return_points_;
    std::unordered_map<std::uint64_t, std::uint64_t> live_;  ///< kept blocks of malloc and object: size
    std::map<std::uint64_t, std::uint64_t> live_mappings_;
    std::vector<Changing> changing_;
    std::vector<process::Memory::Piece> pieces_;
    python::RawStack raw_;
    Hit hit_;
    bool hit_counts_ = false;
    std::uint64_t notified_ns_ = 0;
    std::uint64_t published_ns_ = 0;
    Moment charged_;  ///< when the tracing process's work was last charged
    bool exit_announced_ = false;
};

}  // namespace memattach::probe
