/// What a CPU sample shows: reads a thread's Python stack, while it runs or while it is held for it, finds
/// out whether it had the GIL, and adds the native frames where they are asked for.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "memattach/probe/brief_stop.h"
#include "memattach/probe/cpu_mode.h"
#include "memattach/probe/cpu_native.h"
#include "memattach/probe/cpu_sink.h"
#include "memattach/process/memory.h"
#include "memattach/python/reader.h"
#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::probe {

/// A thread, and what its last stack became.
struct LookedAt {
    int tid = 0;
    base::Address state;  ///< its PyThreadState; null: not known, or it has none
    base::Address
        walked;  ///< the one whose stack was read last: another where it runs a subinterpreter's code
    std::uint64_t seek_state_ns = 0;  ///< not before; the gap grows
    std::uint64_t seek_gap_ns = 0;
    python::RawStack raw;
    std::optional<CpuSink::StackId> last_stack;  ///< what raw became
    std::uint64_t resolved_ns = 0;
};

/// What is known about where in native code a thread was.
struct NativePlace {
    std::uint64_t ip = 0;  ///< 0: unknown
    const std::array<std::uint64_t, kPerfRegisterCount>* registers = nullptr;
    std::span<const std::byte> stack;
    bool stopped = false;  ///< the thread is held while it is looked at
};

class CpuLook {
  public:
    /// The references must outlive it. What is lost is counted in `losses`.
    CpuLook(int pid, const python::Runtime& runtime, const process::Memory& memory,
            trace::FunctionTable& functions, bool native, CpuSink& sink, trace::LossCounts& losses);

    /// Reads anew which thread state belongs to which thread.
    void read_states(std::uint64_t now_ns);
    [[nodiscard]] std::uint64_t states_read_ns() const { return states_read_ns_; }
    /// By the last reading; null where the thread had none.
    [[nodiscard]] base::Address state_of(int tid) const;
    void forget(int tid) {
        states_.erase(tid);
        nested_states_.erase(tid);
    }

    /// Reads the thread's stack now, and whether it holds the GIL; nothing where the stack was lost.
    std::optional<CpuSink::StackId> look(LookedAt& thread, trace::CpuSample& sample,
                                         const NativePlace& place);
    /// The same with the thread stopped for it, which also tells the sample's mode.
    std::optional<CpuSink::StackId> look_stopped(LookedAt& thread, trace::CpuSample& sample);

    /// Python's own name of the thread; empty where it can't be told.
    [[nodiscard]] std::string name_of(const LookedAt& thread) const;

    [[nodiscard]] trace::CpuMode mode_of(const PerfSample& sample) {
        return sample.kernel_mode ? trace::CpuMode::system : regions_.mode_of(base::Address(sample.ip));
    }
    [[nodiscard]] BriefStops& stops() { return stops_; }
    [[nodiscard]] const BriefStops& stops() const { return stops_; }
    [[nodiscard]] bool finalising() const { return reader_.finalising(); }
    /// What went wrong, for the reader of the profile.
    void add_notes(std::vector<std::string>& notes) const;

  private:
    python::WalkStatus walk(LookedAt& thread, bool stopped);
    std::optional<CpuSink::StackId> native_stack(const NativePlace& place);

    const process::Memory& memory_;
    const python::Runtime& runtime_;
    CpuSink& sink_;
    trace::LossCounts& losses_;
    python::StackReader reader_;
    trace::FunctionTable& functions_;
    python::CodeCache codes_;
    CodeRegions regions_;
    std::unique_ptr<NativeFrames> native_;
    BriefStops stops_;
    std::unordered_map<int, base::Address> states_;  ///< by tid; of several, that of the oldest interpreter
    /// Of threads that have several: all, the innermost first.
    std::unordered_map<int, std::vector<base::Address>> nested_states_;
    std::uint64_t states_read_ns_ = 0;
    std::map<std::string, CpuSink::StackId> native_stacks_;  ///< by module
    std::uint64_t refused_stops_ = 0, late_stops_ = 0;
    std::vector<std::byte> stack_bytes_;
    trace::Stack stack_;
};

}  // namespace memattach::probe
