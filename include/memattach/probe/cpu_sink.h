#pragma once

#include <cstdint>
#include <string>

#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::probe {

/// Where CPU samples go.
class CpuSink {
  public:
    enum class StackId : std::uint32_t {};

    virtual ~CpuSink() = default;
    virtual StackId intern(const trace::Stack& stack) = 0;
    virtual void add(const trace::CpuSample& sample, StackId stack) = 0;
    virtual void name_thread(int pid, int tid, const std::string& name) = 0;
    /// The target has started a process; told at once where perf works, else not at all.
    virtual void child_started(int pid) = 0;
    /// The target has called exec: what was known about it is void.
    virtual void exec_called(int pid) = 0;
};

}  // namespace memattach::probe
