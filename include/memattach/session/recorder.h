#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "memattach/probe/cpu_sampler.h"
#include "memattach/profile/builder.h"
#include "memattach/trace/frame.h"

namespace memattach::session {

/// Where a session's probes meet the profile: hands what they saw to the builder.
class Recorder final : public probe::CpuSink {
  public:
    struct Events {
        std::function<void(int pid)> child_started;
        std::function<void(int pid)> exec_called;
    };
    Recorder(const profile::BuildOptions& options, bool gil_only, Events events)
        : builder_(functions_, options), gil_only_(gil_only), events_(std::move(events)) {}

    StackId intern(const trace::Stack& stack) override {
        return static_cast<StackId>(builder_.intern(stack));
    }
    void add(const trace::CpuSample& sample, StackId stack) override {
        builder_.add_place(sample, static_cast<profile::Builder::StackId>(stack));
        if (gil_only_ && !sample.holds_gil) return;
        cpu_samples_ += sample.on_cpu ? 1 : 0;
        builder_.add(sample, static_cast<profile::Builder::StackId>(stack));
    }
    void name_thread(int pid, int tid, const std::string& name) override {
        builder_.name_thread(pid, tid, name);
    }
    void child_started(int pid) override { events_.child_started(pid); }
    void exec_called(int pid) override { events_.exec_called(pid); }

    [[nodiscard]] trace::FunctionTable& functions() { return functions_; }
    [[nodiscard]] profile::Builder& builder() { return builder_; }
    [[nodiscard]] std::uint64_t cpu_samples() const { return cpu_samples_; }

  private:
    trace::FunctionTable functions_;
    profile::Builder builder_;
    bool gil_only_;
    Events events_;
    std::uint64_t cpu_samples_ = 0;
};

}  // namespace memattach::session
