#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memattach/probe/alloc_tracer.h"
#include "memattach/process/memory.h"
#include "memattach/profile/profile.h"
#include "memattach/python/layout.h"
#include "memattach/session/loop.h"
#include "memattach/session/options.h"
#include "memattach/session/recorder.h"

namespace memattach::session {

/// The allocations of one process on their way into the profile.
class MemoryLens final : public probe::AllocSink {
  public:
    struct Events {
        std::function<void(int pid)> child_started;
        std::function<void(int pid)> exec_called;
    };
    /// Attaches. Throws base::Error where the process can't be traced.
    MemoryLens(int pid, const python::Runtime& runtime, const process::Memory& memory, const Options& options,
               Recorder& recorder, Loop& loop, Events events);
    ~MemoryLens() override;

    void finish();
    [[nodiscard]] std::uint64_t samples() const { return tracer_->samples(); }
    [[nodiscard]] probe::AllocTracerStats stats() const { return tracer_->stats(); }

    StackId intern_stack(const trace::Stack& stack) override;
    void spread(std::span<PlacedWindow> windows) override;
    void add(const trace::Alloc& alloc, StackId stack) override;
    void add(const trace::Free& free) override;
    void add(const trace::Window& window) override;
    void add(const trace::Unseen& unseen) override;
    void add(const trace::LiveBlocks& blocks) override;
    void child_forked(int pid) override { events_.child_started(pid); }
    void exec_seen(int pid) override { events_.exec_called(pid); }

  private:
    Recorder& recorder_;
    Loop& loop_;
    Events events_;
    std::unique_ptr<probe::AllocTracer> tracer_;
};

/// What the lenses of all processes of a session have measured, as the session tells it.
class MemoryAccount {
  public:
    void add(const probe::AllocTracerStats& stats);
    void fill(profile::Session& session, double threshold_bytes) const;
    [[nodiscard]] std::optional<std::uint64_t> unknown_frees() const;

  private:
    std::vector<probe::AllocTracerStats> parts_;
};

}  // namespace memattach::session
