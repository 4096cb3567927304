#pragma once

#include <cstdint>
#include <limits>

namespace memattach::probe {

/// Something that watches the target and that a session's loop serves: when a descriptor of its is readable,
/// and when its time has come. A probe is one of these; the loop knows nothing else about it.
class Source {
  public:
    static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

    Source() = default;
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;
    virtual ~Source() = default;

    /// A descriptor that was given to the Poller with this token is readable; `hangup`: it will be for ever
    /// (for a perf event: its thread has ended).
    virtual void on_ready(std::uint64_t token, bool hangup) = 0;

    /// When (CLOCK_MONOTONIC) on_time() wants to be called next, or kNever.
    [[nodiscard]] virtual std::uint64_t due_ns() const = 0;
    virtual void on_time(std::uint64_t now_ns) = 0;
    /// Whether the last microseconds before due_ns() may be spun away. False where that would keep the target
    /// from running.
    [[nodiscard]] virtual bool may_spin() const { return true; }

    /// The session is over: give what is still held back, undo everything. Called once, also where the target
    /// is gone.
    virtual void finish() = 0;
};

/// What a source hands its descriptors to. One epoll set for all: perf's poll() forgets that it was readable
/// once it has said so (perf_poll in kernel/events/core.c), so an epoll set within another would miss
/// records.
class Poller {
  public:
    virtual ~Poller() = default;
    virtual void add(int fd, Source& source, std::uint64_t token) = 0;
    /// Before the descriptor is closed.
    virtual void remove(int fd) = 0;
};

}  // namespace memattach::probe
