#include "memattach/python/reader.h"

#include <algorithm>
#include <unordered_map>

#include "bytecode_copies.h"
#include "memattach/base/error.h"
#include "thread_list.h"
#include "thread_walk.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxRememberedThreads = 16'384;

}  // namespace

struct StackReader::Impl {
    Impl(const process::Memory& memory_in, const Runtime& runtime_in, int pid)
        : memory(memory_in),
          runtime(runtime_in),
          context(memory_in, runtime_in),
          list(memory_in, runtime_in, pid),
          copies(memory_in, runtime_in.layout) {}

    /// The place of the GIL that serves the interpreter at `interpreter`; remembered, as it stays where it
    /// is.
    std::optional<GilPlace> gil_of(std::uint64_t interpreter) {
        const Layout& layout = runtime.layout;
        if (layout.runtime.tstate_current != kAbsent) {
            return GilPlace{runtime.address + layout.runtime.tstate_current, 8, 0, kAbsent};
        }
        if (interpreter == 0 || layout.interpreter.ceval_gil == kAbsent ||
            layout.gil.last_holder == kAbsent) {
            return std::nullopt;
        }
        const auto found = gils.find(interpreter);
        if (found != gils.end()) return found->second;
        std::optional<GilPlace> place;
        const auto gil = memory.read_address(base::Address(interpreter) + layout.interpreter.ceval_gil);
        if (gil && !gil->is_null()) {
            const Offset holder = layout.gil.last_holder;
            const Offset locked = layout.gil.locked;
            constexpr Offset kMaxGilBytes = 256;
            if (locked == kAbsent) {
                place = GilPlace{*gil + holder, 8, 0, kAbsent};
            } else {
                const Offset first = std::min(holder, locked);
                const Offset last = std::max(holder + 8, locked + 4);
                if (last - first <= kMaxGilBytes) {
                    place = GilPlace{*gil + first, last - first, holder - first, locked - first};
                }
            }
        }
        if (gils.size() > kMaxRememberedThreads) gils.clear();
        gils.emplace(interpreter, place);
        return place;
    }

    ThreadWalk& of(base::Address thread_state) {
        if (last_walk != nullptr && last_thread == thread_state) return *last_walk;
        if (walks.size() > kMaxRememberedThreads) walks.clear();
        last_walk = &walks.try_emplace(thread_state, thread_state).first->second;
        last_thread = thread_state;
        return *last_walk;
    }

    const process::Memory& memory;
    Runtime runtime;
    WalkContext context;
    ThreadList list;
    BytecodeCopies copies;
    std::unordered_map<base::Address, ThreadWalk> walks;
    base::Address last_thread;
    ThreadWalk* last_walk = nullptr;
    std::unordered_map<std::uint64_t, std::optional<GilPlace>> gils;
    std::optional<base::Address> gil_holder;
    RawStack outer;
};

StackReader::StackReader(const process::Memory& memory, const Runtime& runtime, int pid)
    : impl_(std::make_unique<Impl>(memory, runtime, pid)) {}

StackReader::~StackReader() = default;

std::vector<ThreadState> StackReader::threads() const {
    auto result = impl_->list.read();
    // Threads end and their thread states' memory is used again: forget those that are no longer listed.
    if (impl_->walks.size() > 2 * result.size() + 64) {
        impl_->walks.clear();
        impl_->last_walk = nullptr;
    }
    return result;
}

WalkStatus StackReader::walk(base::Address thread_state, RawStack& out, bool stopped, ReadAlong* along) {
    Impl& impl = *impl_;
    ThreadWalk& thread = impl.of(thread_state);
    std::uint64_t interpreter = thread.interpreter();
    if (interpreter == 0 && impl.runtime.layout.thread.interp != kAbsent) {
        const auto word = impl.memory.read_address(thread_state + impl.runtime.layout.thread.interp);
        interpreter = word ? word->value() : 0;
    }
    const WalkStatus status =
        thread.walk(impl.context, along == nullptr ? impl.gil_of(interpreter) : std::nullopt, along, out,
                    stopped, impl.gil_holder);
    if (status == WalkStatus::no_frames || status == WalkStatus::gone) {
        out.frames.clear();
        out.truncated = out.broken = out.unchanged = false;
        out.unchanged_frames = 0;
        return status;
    }
    if (!thread.copies().empty()) impl.copies.place(impl.context.frames, thread.copies(), out);
    thread.compare_with_last(out);
    return status;
}

void append_outer(RawStack& stack, const RawStack& outer) {
    stack.unchanged = false;
    stack.unchanged_frames = 0;
    if (stack.truncated || stack.broken) return;
    stack.frames.insert(stack.frames.end(), outer.frames.begin(), outer.frames.end());
    stack.truncated = outer.truncated;
    stack.broken = outer.broken;
    if (stack.frames.size() <= trace::kMaxStackDepth) return;
    stack.frames.resize(trace::kMaxStackDepth);
    stack.truncated = true;
    stack.broken = false;
}

WalkStatus StackReader::walk(std::span<const base::Address> states, RawStack& out, base::Address& innermost,
                             bool stopped, ReadAlong* along) {
    WalkStatus result = WalkStatus::gone;
    bool runs = false;
    std::optional<base::Address> holder;
    for (const base::Address state : states) {
        RawStack& into = runs ? impl_->outer : out;
        const WalkStatus status = walk(state, into, stopped, along);
        if (status == WalkStatus::gone || status == WalkStatus::no_frames) {
            if (!runs && status == WalkStatus::no_frames) result = status;
        } else if (!runs) {
            runs = true;
            result = status;
            innermost = state;
            holder = impl_->gil_holder;
        } else {
            append_outer(out, into);
            if (status == WalkStatus::torn) result = status;
        }
    }
    if (runs) impl_->gil_holder = holder;
    return result;
}

std::optional<base::Address> StackReader::gil_holder() const {
    return impl_->gil_holder;
}

std::optional<base::Address> StackReader::gil(base::Address interpreter) const {
    const Layout& layout = impl_->runtime.layout;
    if (layout.runtime.gil != kAbsent) return impl_->runtime.address + layout.runtime.gil;
    if (layout.interpreter.ceval_gil == kAbsent) return std::nullopt;
    const auto lock = impl_->memory.read_address(interpreter + layout.interpreter.ceval_gil);
    return lock && !lock->is_null() ? lock : std::nullopt;
}

bool StackReader::waits_for_gil(base::Address interpreter, base::Address word) const {
    // Who wants the GIL sleeps on a condition variable or a mutex in struct _gil_runtime_state (take_gil()
    // and drop_gil() in Python/ceval_gil.h, later ceval_gil.c): interval, last_holder, locked and
    // switch_number, then two pairs of pthread_cond_t and pthread_mutex_t, in every version from 3.8 to 3.15.
    // `last_holder` is its second word; in free-threaded builds `enabled` comes first.
    constexpr std::uint64_t kFromHolder = 200;
    const auto lock = gil(interpreter);
    const Offset last_holder = impl_->runtime.layout.gil.last_holder;
    if (!lock || last_holder == kAbsent) return false;
    const base::Address holder = *lock + last_holder;
    return word.value() >= holder.value() && word.value() - holder.value() < kFromHolder;
}

bool StackReader::finalising() const {
    const Offset offset = impl_->runtime.layout.runtime.finalizing;
    if (offset == kAbsent) return false;
    const auto thread = impl_->memory.read_address(impl_->runtime.address + offset);
    return thread && !thread->is_null();
}

}  // namespace memattach::python
