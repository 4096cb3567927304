#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "memattach/python/reader.h"

namespace memattach::probe {

/// Finds the Python thread states of a stopped thread by what pthread_self() is in it (its fs base), which
/// every version keeps in the thread state. Nobody is assumed to hold the GIL.
class ThreadStates {
  public:
    ThreadStates(const process::Memory& memory, const python::Runtime& runtime, python::StackReader& reader)
        : memory_(memory),
          thread_id_offset_(runtime.layout.thread.thread_id),
          interpreters_head_(runtime.address + runtime.layout.runtime.interpreters_head),
          reader_(reader) {}

    /// Innermost first: a thread that works for several interpreters has one state for each. Empty where it
    /// runs no Python. Looks the list of thread states through again where the thread isn't known, though not
    /// more often than every few milliseconds. Valid until the next call.
    [[nodiscard]] std::span<const base::Address> find(std::uint64_t pthread, std::uint64_t now_ns);
    /// The thread states turned out to be no longer there.
    void forget(std::uint64_t pthread) { states_.erase(pthread); }
    void refresh(std::uint64_t now_ns);
    /// To be called now and then, while no thread is held: where there are several interpreters, threads that
    /// are known enter and leave them.
    void keep_up(std::uint64_t now_ns);

  private:
    struct State {
        base::Address address;
        std::uint64_t thread_id = 0;  ///< as it says itself; up to 3.12 that may be its creator's
    };
    [[nodiscard]] std::uint64_t thread_id_of(base::Address state) const;

    const process::Memory& memory_;
    python::Offset thread_id_offset_;
    base::Address interpreters_head_;
    python::StackReader& reader_;
    std::unordered_map<std::uint64_t, std::vector<State>> states_;  ///< by pthread
    std::vector<base::Address> found_;
    std::uint64_t refreshed_ns_ = 0, kept_up_ns_ = 0;
    base::Address newest_interpreter_;
    bool several_ = false;
};

}  // namespace memattach::probe
