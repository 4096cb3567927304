#include "memattach/probe/thread_states.h"

namespace memattach::probe {

std::span<const base::Address> ThreadStates::find(std::uint64_t pthread, std::uint64_t now_ns) {
    constexpr std::uint64_t kRefreshNs = 5'000'000;
    found_.clear();
    for (int round = 0; round < 2; ++round) {
        const auto known = states_.find(pthread);
        if (known != states_.end()) {
            // What it is read for tells as well whether it still is this thread's.
            if (known->second.size() == 1) return found_ = {known->second.front().address};
            for (const State& state : known->second)
                if (thread_id_of(state.address) == state.thread_id) found_.push_back(state.address);
        }
        if (!found_.empty()) break;
        if (round == 0) {
            if (now_ns - refreshed_ns_ < kRefreshNs) break;
            refresh(now_ns);
        }
    }
    return found_;
}

void ThreadStates::refresh(std::uint64_t now_ns) {
    refreshed_ns_ = now_ns;
    states_.clear();
    base::Address interpreter;
    several_ = false;
    for (const python::ThreadState& state : reader_.threads()) {
        several_ |= !interpreter.is_null() && state.interpreter != interpreter;
        interpreter = state.interpreter;
        if (!state.pthread.is_null())
            states_[state.pthread.value()].push_back({state.address, thread_id_of(state.address)});
    }
}

void ThreadStates::keep_up(std::uint64_t now_ns) {
    constexpr std::uint64_t kPeriodNs = 1'000'000'000;
    if (now_ns - kept_up_ns_ < kPeriodNs) return;
    kept_up_ns_ = now_ns;
    const auto newest = memory_.read_address(interpreters_head_).value_or(base::Address());
    if (several_ || newest != newest_interpreter_) refresh(now_ns);
    newest_interpreter_ = newest;
}

std::uint64_t ThreadStates::thread_id_of(base::Address state) const {
    if (thread_id_offset_ == python::kAbsent) return 0;
    return memory_.read<std::uint64_t>(state + thread_id_offset_).value_or(0);
}

}  // namespace memattach::probe
