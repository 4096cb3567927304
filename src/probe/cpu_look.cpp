#include "memattach/probe/cpu_look.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/python/thread_name.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::size_t kStoppedStackBytes = 64 << 10;
/// How long an unchanged stack is taken for the same functions without asking the code cache, which notices
/// code objects whose address was used again.
constexpr std::uint64_t kTrustStackNs = 100 * kMs;
constexpr std::uint64_t kStatesMinAgeNs = 5 * kMs;

}  // namespace

CpuLook::CpuLook(int pid, const python::Runtime& runtime, const process::Memory& memory,
                 trace::FunctionTable& functions, bool native, CpuSink& sink, trace::LossCounts& losses)
    : memory_(memory),
      runtime_(runtime),
      sink_(sink),
      losses_(losses),
      reader_(memory, runtime, pid),
      functions_(functions),
      codes_(memory, runtime, functions),
      regions_(pid, runtime),
      native_(native ? std::make_unique<NativeFrames>(pid, runtime, memory, functions) : nullptr) {}

void CpuLook::read_states(std::uint64_t now_ns) {
    states_read_ns_ = now_ns;
    states_.clear();
    nested_states_.clear();
    // Of a thread's states the innermost comes first.
    for (const python::ThreadState& state : reader_.threads()) {
        if (state.tid == 0) continue;
        base::Address& known = states_[state.tid];
        if (!known.is_null()) {
            auto& nested = nested_states_[state.tid];
            if (nested.empty()) nested.push_back(known);
            nested.push_back(state.address);
        }
        known = state.address;
    }
}

python::WalkStatus CpuLook::walk(LookedAt& thread, bool stopped) {
    base::Address walked = thread.state;
    const auto nested = nested_states_.find(thread.tid);
    const auto status = nested == nested_states_.end()
                            ? reader_.walk(thread.state, thread.raw, stopped)
                            : reader_.walk(nested->second, thread.raw, walked, stopped);
    if (thread.walked != walked) thread.last_stack.reset();
    thread.walked = walked;
    return status;
}

base::Address CpuLook::state_of(int tid) const {
    const auto found = states_.find(tid);
    return found == states_.end() ? base::Address() : found->second;
}

std::string CpuLook::name_of(const LookedAt& thread) const {
    return python::read_thread_name(memory_, runtime_, thread.state).value_or("");
}

void CpuLook::add_notes(std::vector<std::string>& notes) const {
    if (regions_.jit_seen())
        notes.emplace_back(
            "its JIT was at work: functions are exact, lines within a loop that it compiled are not");
    if (refused_stops_ > 0)
        notes.push_back(fmt::format("{} samples without a stop and without a split: {}", refused_stops_,
                                    base::errno_text(stops_.last_error())));
    if (late_stops_ > 0)
        notes.push_back(fmt::format("{} threads didn't stop in time to be sampled", late_stops_));
    if (native_ && native_->mismatched() > 0)
        notes.push_back(
            fmt::format("{} of {} native stacks had changed before the Python stack was read: matched "
                        "at their outer ends",
                        native_->mismatched(), native_->merged()));
}

std::optional<CpuSink::StackId> CpuLook::look(LookedAt& thread, trace::CpuSample& sample,
                                              const NativePlace& place) {
    if (thread.state.is_null()) {
        // A thread that is new to us, or that runs no Python at all; ask less and less often.
        const std::uint64_t now = base::monotonic_ns();
        thread.state = state_of(thread.tid);
        if (thread.state.is_null() && now >= thread.seek_state_ns &&
            now - states_read_ns_ > kStatesMinAgeNs) {
            read_states(now);
            thread.state = state_of(thread.tid);
            thread.seek_gap_ns = std::clamp(2 * thread.seek_gap_ns, kStatesMinAgeNs, 100 * kMs);
            thread.seek_state_ns = now + thread.seek_gap_ns;
        }
        if (thread.state.is_null()) return native_stack(place);
    }
    switch (walk(thread, place.stopped)) {
        case python::WalkStatus::consistent:
            break;
        case python::WalkStatus::torn:
            // Still the best that can be told of this moment: to drop it would leave out code that makes
            // short calls. It is counted.
            ++losses_[trace::Loss::torn_stacks];
            break;
        case python::WalkStatus::no_frames:
            thread.last_stack.reset();
            return native_stack(place);
        case python::WalkStatus::gone:
            thread.last_stack.reset();
            ++losses_[trace::Loss::gone_threads];
            thread.state = base::Address();
            forget(thread.tid);
            return std::nullopt;
    }
    // Naming what was read can wait; the thread can't.
    if (place.stopped) stops_.release();
    const auto holder = reader_.gil_holder();
    sample.holds_gil = holder && *holder == thread.walked;
    if (native_ && place.registers != nullptr) {
        codes_.resolve(thread.raw, stack_, losses_);
        return sink_.intern(native_->merge(*place.registers, place.stack, stack_, codes_.entries()));
    }
    const std::uint64_t now = base::monotonic_ns();
    if (thread.last_stack && thread.raw.unchanged && now - thread.resolved_ns < kTrustStackNs)
        return thread.last_stack;
    codes_.resolve(thread.raw, stack_, losses_);
    thread.last_stack = sink_.intern(stack_);
    thread.resolved_ns = now;
    return thread.last_stack;
}

std::optional<CpuSink::StackId> CpuLook::look_stopped(LookedAt& thread, trace::CpuSample& sample) {
    StoppedRegisters registers;
    NativePlace place;
    switch (stops_.stop(thread.tid, registers)) {
        case StopResult::gone:
            ++losses_[trace::Loss::gone_threads];
            return std::nullopt;
        case StopResult::late:
            ++late_stops_;
            return std::nullopt;
        case StopResult::refused:
            ++refused_stops_;
            return look(thread, sample, place);
        case StopResult::stopped:
            break;
    }
    const std::uint64_t ip = registers.values[kPerfRegisterIp];
    sample.mode = registers.in_system_call ? trace::CpuMode::system : regions_.mode_of(base::Address(ip));
    place.stopped = true;
    if (!registers.in_system_call) place.ip = ip;
    if (native_) {
        // Unwinding takes too long to do it while the thread waits: take the stack along.
        stack_bytes_.resize(kStoppedStackBytes);
        const base::Address sp(registers.values[kPerfRegisterSp]);
        place.stack = std::span(stack_bytes_).first(memory_.read_up_to(sp, stack_bytes_));
        place.registers = &registers.values;
    }
    const auto stack = look(thread, sample, place);
    stops_.release();
    return stack;
}

std::optional<CpuSink::StackId> CpuLook::native_stack(const NativePlace& place) {
    if (native_ && place.registers != nullptr)
        return sink_.intern(
            native_->merge(*place.registers, place.stack, trace::Stack{}, std::vector<bool>{}));
    const std::string module = place.ip == 0 ? std::string() : regions_.module_of(base::Address(place.ip));
    const auto found = native_stacks_.find(module);
    if (found != native_stacks_.end()) return found->second;
    const trace::Stack stack = {{functions_.intern({"<native>", module, 0, trace::FunctionKind::native}), 0}};
    return native_stacks_.emplace(module, sink_.intern(stack)).first->second;
}

}  // namespace memattach::probe
