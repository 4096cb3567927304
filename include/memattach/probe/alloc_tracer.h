/// Watches the allocations of one process through ptrace. The analysing half: takes what the tracing process
/// found, resolves stacks while their code objects are still there, and hands everything on in order.
///
///     AllocTracer tracer(pid, runtime, memory, functions, options, sink, poller);   // armed
///     … the session's loop calls on_ready() and on_time() …
///     tracer.finish();                                                     // nothing is left behind
///     tracer.stats();
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "memattach/probe/block_watch.h"
#include "memattach/probe/live_count.h"
#include "memattach/probe/sites.h"
#include "memattach/probe/source.h"
#include "memattach/probe/trace_process.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"
#include "memattach/python/reader.h"
#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::probe {

class AllocSink {
  public:
    enum class StackId : std::uint32_t {};

    AllocSink() = default;
    AllocSink(const AllocSink&) = delete;
    AllocSink& operator=(const AllocSink&) = delete;
    virtual ~AllocSink() = default;
    virtual StackId intern_stack(const trace::Stack& stack) = 0;
    /// A window, and where in the program it began.
    struct PlacedWindow {
        trace::Window window;
        StackId stack{};
    };
    /// Windows of one kind that followed each other, before their allocations are added: what they stand for
    /// may be shared out anew between them.
    virtual void spread(std::span<PlacedWindow> windows) = 0;
    virtual void add(const trace::Alloc& alloc, StackId stack) = 0;
    virtual void add(const trace::Free& free) = 0;
    virtual void add(const trace::Window& window) = 0;
    virtual void add(const trace::Unseen& unseen) = 0;
    virtual void add(const trace::LiveBlocks& blocks) = 0;
    /// The target made a process with a copy of its memory; told at once.
    virtual void child_forked(int pid) = 0;
    /// The target replaced its program: no more will come.
    virtual void exec_seen(int pid) = 0;
};

struct AllocTracerStats {
    std::uint64_t hits = 0;
    std::uint64_t samples = 0;
    std::uint64_t unknown_frees = 0;
    double stopped_s = 0;
    double longest_stop_us = 0;
    double overhead_pct = 0;
    double coverage_malloc = 0;
    double coverage_object = 0;
    double coverage_large = 0;           ///< of malloc's large blocks
    std::uint64_t large_from_bytes = 0;  ///< 0: they are seen as all others are
    BlockWatch::Figures watch;
    bool has_objects = false;           ///< Python's small objects are seen
    std::optional<bool> text_verified;  ///< after finish()
    std::string allocator;              ///< "glibc", "pymalloc"
    std::vector<std::string> notes;
    /// What was looked at in so few windows that their spread says too little: what, and how many.
    struct FewWindows {
        std::string what;
        std::uint64_t windows = 0;
    };
    std::vector<FewWindows> few_windows;
    trace::LossCounts loss;
};

class AllocTracer final : public Source {
  public:
    /// The references must outlive it. Throws base::Error, in one line, where the process can't be traced.
    AllocTracer(int pid, const python::Runtime& runtime, const process::Memory& memory,
                trace::FunctionTable& functions, const AllocProbeOptions& options, AllocSink& sink,
                Poller& poller);
    ~AllocTracer() override;

    void on_ready(std::uint64_t, bool) override { drain(); }
    [[nodiscard]] std::uint64_t due_ns() const override {
        return std::min({due_ns_, watch_->due_ns(), live_count_->due_ns()});
    }
    void on_time(std::uint64_t now_ns) override;
    void finish() override;

    [[nodiscard]] AllocTracerStats stats() const;
    [[nodiscard]] std::uint64_t samples() const;
    /// For tests of what happens when it dies.
    [[nodiscard]] pid_t tracer_pid() const { return process_->tracer_pid(); }

  private:
    struct PendingAlloc {
        trace::Alloc alloc;
        AllocSink::StackId stack{};
    };
    using Pending = std::variant<PendingAlloc, trace::Free, trace::Window, trace::Unseen, trace::LiveBlocks>;

    void drain();
    void look(std::uint64_t now_ns);
    void look_last();
    void take(const TraceEvent& event, std::vector<python::RawFrame>& frames);
    void take_alloc(const TraceEvent& event, std::vector<python::RawFrame>& frames);
    void take_window(const TraceEvent& event, std::vector<python::RawFrame>& frames);
    AllocSink::StackId resolve(const TraceEvent& event, std::vector<python::RawFrame>& frames);
    /// Windows of one kind that aren't handed on yet.
    struct Batch {
        std::vector<trace::Window> windows;
        /// Where they began, by their ids, as far as that is known.
        std::unordered_map<std::uint64_t, AllocSink::StackId> stacks;
        std::uint64_t due_ns = 0;
    };
    void hand_on(Batch& batch);
    void spread(std::vector<trace::Window>& windows, const Batch& batch);
    void deliver(bool all);
    AllocSink::StackId native_stack(std::uint64_t caller);
    std::string module_of(std::uint64_t address);

    int pid_;
    trace::FunctionTable& functions_;
    AllocSink& sink_;
    Poller& poller_;
    SiteMap sites_;
    python::CodeCache codes_;
    std::unique_ptr<TraceProcess> process_;
    std::unique_ptr<BlockWatch> watch_;
    std::unique_ptr<LiveCount> live_count_;
    std::vector<trace::Free> ended_;
    std::uint64_t due_ns_ = 0;
    /// In the order of events. What was seen in a window waits until the window's weight is known.
    std::deque<Pending> pending_;
    std::unordered_map<std::uint64_t, double> window_fraction_;  ///< by window id and kind
    std::array<Batch, trace::kAllocKinds> batches_;              ///< by kind
    process::RecentMaps maps_;
    std::unordered_map<std::string, AllocSink::StackId> native_stacks_;
    trace::LossCounts loss_;
    std::vector<python::RawFrame> frames_;
    python::RawStack raw_;
    trace::Stack stack_;
    bool ending_ = false;
    bool finished_ = false;
    bool looked_last_ = false;
    bool exec_seen_ = false;
    std::optional<bool> text_verified_;
};

}  // namespace memattach::probe
