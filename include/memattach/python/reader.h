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
#include <span>
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
    /// All frames and flags are those of the last walk() of this thread. Whoever remembers what that one
    /// became can use it again, as long as CodeCache::resolve() sees the stack a few times a second (code
    /// objects die, and others are born at their addresses).
    bool unchanged = false;
    /// How many of the outermost frames are.
    std::uint32_t unchanged_frames = 0;
};

/// What called the outermost frame of `stack`, in another interpreter of the same thread.
void append_outer(RawStack& stack, const RawStack& outer);

/// How sure a walk is. The target runs on while it is read. Each system call reads all frames (the first
/// look), then the thread's current-frame word, then the innermost frames once more (the second look), a
/// third of a microsecond apart; neighbouring frames are copied within some ten nanoseconds of each other.
///
/// Measured against the same walks of a thread that was stopped for each (3.9, 3.11, 3.13; a loop over
/// functions that do next to nothing, and one without calls): functions that last 100 ns and more get their
/// share within the noise of 4,000 samples; of the time in functions like `def f(x): return x`, some 10 ns a
/// call, about half goes to the caller instead (1 to 3 % of all samples of a program that does nothing else);
/// torn 0.0 %. 3.14 and 3.15 call a frame left only once it has been cleared, so there the time of making and
/// clearing frames is the callee's (5 % of all samples of that program), not the caller's.
enum class WalkStatus : std::uint8_t {
    /// The stack of the moment of the second look: its innermost frame said of itself that it ran (see
    /// Layout::running_kind) and no other one ran inside of it, and the frames were followed outwards to
    /// one that was the same, down to its instruction, in both looks; those outside of that one come from
    /// the first. Or, where frames can't say: the frame that the word named was the same before and after,
    /// and so was its caller's instruction. What can't be seen is a stack that was left and entered anew at
    /// the same instructions meanwhile.
    consistent,
    /// No try found that. `out` holds what the first look of the first try showed: properly linked frames,
    /// but the innermost ones may be of two moments up to a microsecond apart, or one may be missing. Use
    /// it, and count it: leaving it out would leave out code that makes short calls, which is torn more
    /// often the shorter they are.
    torn,
    no_frames,  ///< the thread runs no Python code now
    gone,       ///< the thread state can't be read or isn't this thread's any more
};

/// A piece of memory that is read along with a stack, in the same system call.
struct ReadAlong {
    process::Memory::Piece piece;
    bool arrived = false;
};

/// A thread that has entered several interpreters has a state in each. Such states are listed innermost
/// first: by where the C stack says so (3.11, 3.12), else the newer interpreter first.
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
    /// `pid` is whose tids threads() tells, through /proc; 0: nobody's, tids stay as the thread states have
    /// them.
    StackReader(const process::Memory& memory, const Runtime& runtime, int pid);
    ~StackReader();
    StackReader(const StackReader&) = delete;
    StackReader& operator=(const StackReader&) = delete;

    /// All thread states of all interpreters, each list bounded and checked for cycles. Cheap enough for
    /// several times a second, not for each sample.
    [[nodiscard]] std::vector<ThreadState> threads() const;

    /// The stack of one thread, without stopping it: one system call (two where the native stack's depth
    /// changed) where the frames lie where they lay at the last call for this thread, a few more elsewhere; a
    /// try that saw the stack change is repeated up to three times, for the same innermost frame as the first
    /// one, so that whether a stack is seen doesn't depend on how long it lasts. Where the caller holds the
    /// thread stopped, pass `stopped` = true: nothing is read twice. `along` takes the place of the GIL's
    /// holder.
    WalkStatus walk(base::Address thread_state, RawStack& out, bool stopped = false,
                    ReadAlong* along = nullptr);

    /// The stack of a thread that has several states, innermost first: their frames, one below the other, as
    /// they lie on its C stack. `innermost` becomes the first one that runs code. What gil_holder() tells is
    /// that one's.
    WalkStatus walk(std::span<const base::Address> states, RawStack& out, base::Address& innermost,
                    bool stopped = false, ReadAlong* along = nullptr);

    /// The thread state that holds the GIL of the interpreter of `thread_state`, as read by the last walk()
    /// of it (in the same system call); nothing where this build has no GIL or it is free.
    [[nodiscard]] std::optional<base::Address> gil_holder() const;

    /// The GIL that serves `interpreter`: the same for all of them up to 3.11, from 3.12 on (PEP 684) each
    /// may have its own. Nothing where it can't be told.
    [[nodiscard]] std::optional<base::Address> gil(base::Address interpreter) const;

    /// Whether a thread of `interpreter` that sleeps on the futex at `word` waits for its GIL.
    [[nodiscard]] bool waits_for_gil(base::Address interpreter, base::Address word) const;

    /// True once the runtime says that it is finalising.
    [[nodiscard]] bool finalising() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Turns raw frames into functions and lines, with a cache of code objects that notices when an address has
/// been reused: what a code object refers to is read again, for all those of a stack in one call, when it was
/// last confirmed longer ago than Options say.
class CodeCache {
  public:
    struct Options {
        std::uint64_t trust_changed_ns = 1'000'000;     ///< frames that weren't in the thread's last stack
        std::uint64_t trust_unchanged_ns = 50'000'000;  ///< frames that were
        std::size_t max_codes = 65'536;                 ///< more than that are forgotten and read again
    };
    CodeCache(const process::Memory& memory, const Runtime& runtime, trace::FunctionTable& table);
    CodeCache(const process::Memory& memory, const Runtime& runtime, trace::FunctionTable& table,
              const Options& options);
    ~CodeCache();
    CodeCache(const CodeCache&) = delete;
    CodeCache& operator=(const CodeCache&) = delete;

    /// Writes raw's frames to `out`, innermost first, with marker frames where it was truncated or broken.
    /// Frames of the interpreter's own making (3.12+: the one below an __init__) are left out. Counts what
    /// was lost.
    void resolve(const RawStack& raw, trace::Stack& out, trace::LossCounts& losses);

    /// RawFrame::entry of each frame that the last resolve() wrote; false for markers.
    [[nodiscard]] const std::vector<bool>& entries() const;

    [[nodiscard]] std::size_t code_count() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace memattach::python
