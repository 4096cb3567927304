#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "frame_shape.h"
#include "frame_window.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/python/reader.h"

namespace memattach::python {

/// Where the words of a thread state lie that each walk reads: its current frame, and those that tell whether
/// it still is the same thread's (memory of ended threads is used again).
class ThreadShape {
  public:
    explicit ThreadShape(const Layout& layout);

    struct Head {
        std::uint64_t interpreter = 0;
        std::uint64_t thread_id = 0;
        std::uint64_t native_thread_id = 0;
        std::uint64_t frame = 0;  ///< 3.11, 3.12: the _PyCFrame that names the current frame
        [[nodiscard]] bool same_thread(const Head& other) const {
            return interpreter == other.interpreter && thread_id == other.thread_id &&
                   native_thread_id == other.native_thread_id;
        }
    };

    [[nodiscard]] std::uint32_t begin() const { return begin_; }
    [[nodiscard]] std::uint32_t bytes() const { return end_ - begin_; }
    [[nodiscard]] Head parse(const std::byte* bytes) const;
    [[nodiscard]] bool has_cframe() const { return has_cframe_; }
    [[nodiscard]] std::uint32_t cframe_current() const { return cframe_current_; }

  private:
    std::uint32_t begin_ = 0;
    std::uint32_t end_ = 0;
    Offset interpreter_;
    Offset thread_id_;
    Offset native_thread_id_;
    Offset frame_;
    bool has_cframe_;
    Offset cframe_current_;
};

/// Where the word lies that names the GIL's holder, and whether it is held.
struct GilPlace {
    base::Address address;
    std::uint32_t bytes = 0;
    std::uint32_t holder = 0;        ///< offset of the holder's thread state from `address`
    std::uint32_t locked = kAbsent;  ///< offset of an int, where there is one
};

/// Everything that walks have in common.
struct WalkContext {
    WalkContext(const process::Memory& memory_in, const Runtime& runtime);

    const process::Memory& memory;
    FrameShape frames;
    ThreadShape threads;
    Offset code_bytecode;
};

/// Walks one thread again and again, and remembers where its frames lay.
class ThreadWalk {
  public:
    explicit ThreadWalk(base::Address thread_state) : thread_state_(thread_state) {}

    /// `gil`: read along where it is given; the holder goes to `gil_holder`. `along` may be null.
    WalkStatus walk(const WalkContext& context, const std::optional<GilPlace>& gil, ReadAlong* along,
                    RawStack& out, bool stopped, std::optional<base::Address>& gil_holder);

    /// The interpreter that the thread state named at the last walk; 0 before.
    [[nodiscard]] std::uint64_t interpreter() const { return identity_ ? identity_->interpreter : 0; }

    /// Sets out.unchanged and out.unchanged_frames, and remembers `out` for the next time.
    void compare_with_last(RawStack& out);

    /// Index of the bytecode copy and instruction pointer of frame `i` of the last walk
    /// (free-threaded 3.14+).
    struct Copy {
        std::int32_t index = 0;
        std::uint64_t instr = 0;
    };
    [[nodiscard]] std::span<const Copy> copies() const { return copies_; }

  private:
    enum class Chain : std::uint8_t {
        complete,
        missing,     ///< a frame lies outside of what was read
        unanchored,  ///< the second look didn't reach down to a frame that had stayed as it was
        senseless,
    };
    enum class Looks : std::uint8_t { first, second };

    void plan(const WalkContext& context, std::uint64_t top, bool widely = false);
    bool read(const WalkContext& context, const std::optional<GilPlace>& gil, ReadAlong* along, bool stopped);
    Chain follow(const WalkContext& context, std::uint64_t top, Looks looks, RawStack& out);
    [[nodiscard]] bool discover(const WalkContext& context, std::uint64_t top, bool to_known);
    [[nodiscard]] std::optional<std::uint64_t> innermost_at_second_look(const WalkContext& context) const;
    [[nodiscard]] std::uint64_t nearest_not_left(const WalkContext& context, std::uint64_t address) const;
    [[nodiscard]] bool stood_still(const WalkContext& context, std::uint64_t top) const;
    [[nodiscard]] std::optional<FrameHeader> seen_again(const WalkContext& context, std::uint64_t address,
                                                        std::size_t& hint) const;
    [[nodiscard]] bool add_frame(const WalkContext& context, const FrameHeader& header, RawStack& out);
    void remember_whole();
    [[nodiscard]] bool graft(const WalkContext& context, RawStack& out);
    void remember_top(std::uint64_t top);
    void forget_places();

    base::Address thread_state_;
    std::optional<ThreadShape::Head> identity_;
    std::uint64_t cframe_ = 0;
    std::uint64_t walks_ = 0;

    FrameWindow window_;  ///< all frames
    FrameWindow again_;   ///< the innermost ones once more
    std::vector<std::uint64_t> again_addresses_;
    std::uint64_t planned_top_ = 0;
    std::vector<std::uint64_t> planned_chain_;
    std::vector<std::uint64_t> chain_;  ///< addresses of the frames followed last, shims too, innermost first
    std::vector<std::uint64_t> instrs_;  ///< FrameHeader::instr of each of them
    struct Place {
        std::uint64_t address = 0, instr = 0;
    };
    /// The last chain ended at a frame that is nobody's first: a generator's, or one that was left.
    bool is_cut_ = false;
    std::vector<Place> whole_;  ///< the last chain that was sure
    struct RecentTop {
        std::uint64_t address = 0;
        std::uint64_t walk = 0;
    };
    static constexpr std::size_t kMaxRecentTops = 6;
    std::array<RecentTop, kMaxRecentTops> recent_tops_{};
    std::vector<Copy> copies_;
    RawStack last_;   ///< what the last walk told
    RawStack spare_;  ///< a further try, while a torn one is kept

    // What the last read() brought.
    ThreadShape::Head head_;
    std::uint64_t word_ = 0;  ///< the current frame
    std::optional<base::Address> holder_;
    bool head_arrived_ = false;

    std::vector<process::Memory::Piece> pieces_;
    std::vector<std::uint64_t> addresses_;
    std::vector<std::byte> head_bytes_;
};

}  // namespace memattach::python
