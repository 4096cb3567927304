#pragma once

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "memattach/probe/patches.h"
#include "memattach/probe/trace_ring.h"

namespace memattach::probe {

/// What the tracing process has done so far; written by it alone.
struct TraceFigures {
    std::atomic<std::uint64_t> hits, samples, stops, steps, threads_started, unknown_frees, lost_returns,
        null_traps;
    std::atomic<std::uint64_t> stopped_ns, longest_stop_ns, own_ns, hit_wall_ns, hit_cpu_ns;
    std::atomic<std::uint64_t> malloc_windows, malloc_dense, object_windows, object_dense, large_windows,
        plant_failures;
    std::atomic<double> overhead, coverage_malloc, coverage_object, coverage_large;
    std::atomic<std::uint64_t> large_from_bytes;  ///< 0: large blocks have no site of their own
};

/// The memory that the tracing and the analysing process share: mapped before the fork, filled with zeros.
struct TraceShared {
    enum State : std::uint32_t {
        starting = 0,
        armed,   ///< attached, and everything that should be armed at first is
        failed,  ///< could not attach: `error` says why
        ended,   ///< let go of the target, everything undone
    };
    std::atomic<std::uint32_t> state;
    /// Set by the analysing process, followed by SIGUSR1.
    std::atomic<std::uint32_t> finish_asked;
    std::atomic<std::uint32_t> exit_drained;
    std::atomic<std::int32_t> analyser_pid;
    /// The thread that repairs when the tracing process dies, once it has real-time priority; 0 before.
    std::atomic<std::int32_t> watcher_tid;
    /// Held by the tracing process while it lives. It is a robust one: the kernel hands it on when its owner
    /// dies, and does so first of all, before the owner's memory and files go and its tracees are let go
    /// (kernel/exit.c do_exit(): exit_mm(), exit_files(), exit_notify()).
    pthread_mutex_t alive;
    std::atomic<std::uint64_t> heartbeat_ns;
    std::array<char, 512> error;
    TraceFigures figures;
    PatchTable patches;
    TraceRing ring;
};

}  // namespace memattach::probe
