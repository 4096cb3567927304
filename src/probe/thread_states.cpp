#include "memattach/probe/thread_states.h"

namespace memattach::probe {

base::Address ThreadStates::find(std::uint64_t pthread, std::uint64_t now_ns) {
    constexpr std::uint64_t kRefreshNs = 5'000'000;
    for (int round = 0; round < 2; ++round) {
        const auto found = states_.find(pthread);
        if (found != states_.end()) {
            // With one state, which is nearly always so, that it still belongs to this thread is all to ask;
            // with several, the one that has frames and was entered last is at the end of the list.
            for (auto it = found->second.rbegin(); it != found->second.rend(); ++it) {
                if (belongs_to(*it, pthread)) return *it;
            }
        }
        if (round == 0) {
            if (now_ns - refreshed_ns_ < kRefreshNs) return {};
            refresh(now_ns);
        }
    }
    return {};
}

void ThreadStates::refresh(std::uint64_t now_ns) {
    refreshed_ns_ = now_ns;
    states_.clear();
    for (const python::ThreadState& state : reader_.threads()) {
        if (!state.pthread.is_null()) states_[state.pthread.value()].push_back(state.address);
    }
}

bool ThreadStates::belongs_to(base::Address state, std::uint64_t pthread) const {
    if (thread_id_offset_ == python::kAbsent) return true;
    return memory_.read<std::uint64_t>(state + thread_id_offset_) == pthread;
}

}  // namespace memattach::probe
