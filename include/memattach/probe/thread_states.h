#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "memattach/python/reader.h"

namespace memattach::probe {

/// Finds the Python thread state of a stopped thread by what pthread_self() is in it (its fs base), which
/// every version keeps in the thread state. Nobody is assumed to hold the GIL.
class ThreadStates {
  public:
    ThreadStates(const process::Memory& memory, const python::Runtime& runtime, python::StackReader& reader)
        : memory_(memory), thread_id_offset_(runtime.layout.thread.thread_id), reader_(reader) {}

    /// Null where the thread runs no Python. Looks the list of thread states through again where the thread
    /// isn't known, though not more often than every few milliseconds.
    base::Address find(std::uint64_t pthread, std::uint64_t now_ns);
    /// The thread state turned out to be no longer there.
    void forget(std::uint64_t pthread) { states_.erase(pthread); }
    void refresh(std::uint64_t now_ns);

  private:
    [[nodiscard]] bool belongs_to(base::Address state, std::uint64_t pthread) const;

    const process::Memory& memory_;
    python::Offset thread_id_offset_;
    python::StackReader& reader_;
    /// By pthread. A thread that works for several interpreters has one state for each.
    std::unordered_map<std::uint64_t, std::vector<base::Address>> states_;
    std::uint64_t refreshed_ns_ = 0;
};

}  // namespace memattach::probe
