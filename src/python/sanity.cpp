#include "memattach/python/sanity.h"

#include <fmt/format.h>

namespace memattach::python {
namespace {

constexpr int kTries = 25;
constexpr int kMaxInterpreters = 256;
constexpr int kMaxThreads = 64;  ///< enough to meet one with a frame
constexpr int kMaxFrames = 8;    ///< past the trampolines

class Walk {
  public:
    Walk(const process::Memory& memory, const Layout& layout) : memory_(memory), layout_(layout) {}

    Sanity run(base::Address runtime, std::string& why) {
        bool any_thread = false;
        bool any_frame = false;
        auto interpreter = memory_.read_address(runtime + layout_.runtime.interpreters_head);
        if (!interpreter) return contradiction(why, "the list of interpreters can't be read");
        for (int i = 0; i < kMaxInterpreters && !interpreter->is_null(); ++i) {
            auto thread = memory_.read_address(*interpreter + layout_.interpreter.threads_head);
            if (!thread) return contradiction(why, "an interpreter's list of threads can't be read");
            base::Address previous;
            for (int t = 0; t < kMaxThreads && !thread->is_null(); ++t) {
                const auto owner = memory_.read_address(*thread + layout_.thread.interp);
                if (!owner || *owner != *interpreter)
                    return contradiction(why, "a thread state doesn't lead back to its interpreter");
                if (layout_.thread.prev != kAbsent &&
                    memory_.read_address(*thread + layout_.thread.prev) != previous)
                    return contradiction(why, "thread states aren't linked both ways");
                any_thread = true;
                if (!any_frame) {
                    const Sanity frame = check_frames(*thread, why);
                    if (frame == Sanity::contradicted) return frame;
                    any_frame = frame == Sanity::confirmed;
                }
                previous = *thread;
                thread = memory_.read_address(*thread + layout_.thread.next);
                if (!thread) return contradiction(why, "a thread state can't be read");
            }
            if (any_thread && !check_gil(runtime, *interpreter))
                return contradiction(why, "the GIL isn't where it should be");
            if (any_frame) return Sanity::confirmed;
            interpreter = memory_.read_address(*interpreter + layout_.interpreter.next);
            if (!interpreter) return contradiction(why, "an interpreter state can't be read");
        }
        return any_thread ? Sanity::no_frames : Sanity::not_started;
    }

  private:
    /// Both ways to the GIL are plain words in the middle of large structures, which a table of a slightly
    /// other version could miss.
    [[nodiscard]] bool check_gil(base::Address runtime, base::Address interpreter) const {
        if (layout_.runtime.tstate_current != kAbsent) {
            const auto holder = memory_.read_address(runtime + layout_.runtime.tstate_current);
            if (!holder) return false;
            if (holder->is_null()) return true;
            // It may belong to another interpreter; that one begins with its `next` or leads to its threads.
            const auto owner = memory_.read_address(*holder + layout_.thread.interp);
            const auto first =
                owner ? memory_.read_address(*owner + layout_.interpreter.threads_head) : owner;
            return first && memory_.read_address(*first + layout_.thread.interp) == owner;
        }
        if (layout_.interpreter.ceval_gil == kAbsent || layout_.gil.locked == kAbsent) return true;
        const auto gil = memory_.read_address(interpreter + layout_.interpreter.ceval_gil);
        const auto locked = gil ? memory_.read<std::int32_t>(*gil + layout_.gil.locked) : std::nullopt;
        // −1 before it is created, then 0 or 1: Python/ceval_gil.c
        return locked && *locked >= -1 && *locked <= 1;
    }

    static Sanity contradiction(std::string& why, std::string_view what) {
        why = what;
        return Sanity::contradicted;
    }

    Sanity check_frames(base::Address thread, std::string& why) {
        auto frame = memory_.read_address(
            thread + (layout_.thread.cframe != kAbsent ? layout_.thread.cframe : layout_.thread.frame));
        if (frame && !frame->is_null() && layout_.thread.cframe != kAbsent)
            frame = memory_.read_address(*frame + layout_.cframe.current_frame);
        if (!frame) return contradiction(why, "a thread's frame can't be read");
        for (int i = 0; i < kMaxFrames && !frame->is_null(); ++i) {
            const auto code = memory_.read<std::uint64_t>(*frame + layout_.frame.code);
            if (!code) return contradiction(why, "a frame can't be read");
            const base::Address address(*code & ~layout_.stackref_tag_mask);
            const std::string type = type_name(address);
            if (type == "code") return check_code(address, why);
            // The interpreter's own trampolines have None there (3.13+) or nothing at all.
            const bool trampoline =
                layout_.owner_shim != kAbsent && (address.is_null() || type == "NoneType");
            if (!trampoline) return contradiction(why, "a frame's code is of another type");
            const auto next = memory_.read_address(*frame + layout_.frame.previous);
            if (!next) return contradiction(why, "a frame can't be read");
            frame = next;
        }
        return frame->is_null() ? Sanity::no_frames : contradiction(why, "no frame has a code object");
    }

    Sanity check_code(base::Address code, std::string& why) {
        const auto name = memory_.read_address(code + layout_.code.name);
        const auto file = memory_.read_address(code + layout_.code.filename);
        const auto table = memory_.read_address(code + layout_.code.linetable);
        if (!name || !file || !table) return contradiction(why, "a code object can't be read");
        if (type_name(*name) != "str" || type_name(*file) != "str")
            return contradiction(why, "a code object's names aren't strings");
        if (type_name(*table) != "bytes") return contradiction(why, "a code object's line table isn't bytes");
        const auto length = memory_.read<std::int64_t>(*file + layout_.unicode.length);
        if (!length || *length < 0 || *length > 1 << 20)
            return contradiction(why, "a file name's length is out of range");
        return Sanity::confirmed;
    }

    [[nodiscard]] std::string type_name(base::Address object) const {
        const auto type = memory_.read_address(object + layout_.object.type);
        const auto name = type ? memory_.read_address(*type + layout_.type.name) : type;
        return name ? memory_.read_c_string(*name, 64).value_or("") : "";
    }

    const process::Memory& memory_;
    const Layout& layout_;
};

}  // namespace

Sanity check_layout(const process::Memory& memory, base::Address runtime, const Layout& layout,
                    std::string& why) {
    Sanity result = Sanity::contradicted;
    for (int i = 0; i < kTries; ++i) {
        result = Walk(memory, layout).run(runtime, why);
        if (result != Sanity::contradicted) break;
    }
    return result;
}

}  // namespace memattach::python
