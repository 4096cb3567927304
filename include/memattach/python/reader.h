/// Reads Python stacks out of another process while it runs.
///
///     StackReader reader(memory, runtime);
///     CodeCache codes(memory, runtime, table);
///     for (const ThreadState& thread : reader.threads()) {
///         RawStack raw;
///         if (reader.walk(thread.address, raw) == WalkStatus::consistent) codes.resolve(raw, stack);
///     }
///
/// Two steps, because they can happen in different processes: `walk` takes addresses only (it is what the
/// ptracing process does while a thread is stopped), `resolve` turns them into functions and lines.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::python {

/// A frame as the interpreter has it. Trampolines (shim frames) are left out; `entry` is set on the outermost
/// Python frame of each run of the eval loop, which is where a native stack shows one eval-loop frame.
struct RawFrame {
    base::Address code;  ///< the code object, tags removed
    std::int32_t instr_offset =
        -1;  ///< bytes from the first instruction to the last one executed; -1: not started
    bool entry = false;
    bool operator==(const RawFrame&) const = default;
};

/// Innermost first, at most trace::kMaxStackDepth.
struct RawStack {
    std::vector<RawFrame> frames;
    bool truncated = false;  ///< there were more
    bool broken = false;     ///< a frame could not be read or made no sense: those outside of it are missing
};

enum class WalkStatus : std::uint8_t {
    consistent,  ///< the stack was the same before and after; the result is in `out`
    torn,        ///< it changed on every try; `out` holds the last one, which may mix two moments
    no_frames,   ///< the thread runs no Python code now
    gone,        ///< the thread state can't be read or isn't one any more
};

struct ThreadState {
    base::Address address;  ///< of the PyThreadState
    base::Address interpreter;
    std::int64_t interpreter_id = 0;
    std::int32_t tid = 0;  ///< as memattach's pid namespace sees it; 0 where it can't be told
    base::Address pthread;
};

/// Not thread-safe; one for each sampling thread.
class StackReader {
  public:
    StackReader(const process::Memory& memory, const Runtime& runtime, int pid);
    ~StackReader();
    StackReader(const StackReader&) = delete;
    StackReader& operator=(const StackReader&) = delete;

    /// All thread states of all interpreters, each list bounded and checked for cycles. Cheap enough for
    /// several times a second, not for each sample.
    [[nodiscard]] std::vector<ThreadState> threads() const;

    /// The stack of one thread, without stopping it. In steady state (most frames as at the last call for
    /// this thread) one or two system calls. Where the caller holds the thread stopped, pass `stopped` =
    /// true: no consistency check is needed.
    WalkStatus walk(base::Address thread_state, RawStack& out, bool stopped = false);

    /// The thread state that holds the GIL of the interpreter of `thread_state`, as read by the last walk()
    /// of it (in the same system call); nothing where this build has no GIL or it is free.
    [[nodiscard]] std::optional<base::Address> gil_holder() const;

    /// True once the runtime says that it is finalising.
    [[nodiscard]] bool finalising() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Turns raw frames into functions and lines, with a cache of code objects that notices when an address has
/// been reused.
class CodeCache {
  public:
    CodeCache(const process::Memory& memory, const Runtime& runtime, trace::FunctionTable& table);
    ~CodeCache();
    CodeCache(const CodeCache&) = delete;
    CodeCache& operator=(const CodeCache&) = delete;

    /// Writes raw's frames to `out`, innermost first, with marker frames where it was truncated or broken.
    /// Counts what was lost.
    void resolve(const RawStack& raw, trace::Stack& out, trace::LossCounts& losses);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace memattach::python
