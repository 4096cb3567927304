#pragma once

#include <cstdint>
#include <span>

#include "memattach/base/address.h"
#include "memattach/python/layout.h"
#include "memattach/python/reader.h"

namespace memattach::python {

/// What a frame says of itself.
enum class Activity : std::uint8_t {
    unknown,
    left,       ///< no longer (or not yet) on any stack, though its words are still there
    live,       ///< on a stack
    innermost,  ///< on a stack, and the innermost one of its run of the eval loop
};

/// The few words of an interpreter frame that a walk needs. `instr` is what the version keeps: an offset or a
/// pointer.
struct FrameHeader {
    std::uint64_t previous = 0;
    std::uint64_t code = 0;  ///< stackref tag removed
    std::uint64_t instr = 0;
    std::int32_t tlbc_index =
        0;                      ///< which copy of the bytecode `instr` points into; 0: the code object's own
    bool shim = false;          ///< the interpreter's own trampoline
    bool is_entry = false;      ///< 3.11's flag
    bool is_generator = false;  ///< a generator's or coroutine's: nobody's, unless that runs
    Activity activity = Activity::unknown;
    bool operator==(const FrameHeader&) const = default;
};

/// Where those words lie, as one stretch of bytes.
class FrameShape {
  public:
    explicit FrameShape(const Layout& layout);

    [[nodiscard]] std::uint32_t begin() const { return begin_; }
    [[nodiscard]] std::uint32_t bytes() const { return end_ - begin_; }

    /// `bytes` holds bytes() bytes from frame + begin() on.
    [[nodiscard]] FrameHeader parse(const std::byte* bytes) const;

    /// Byte offset of the instruction within the bytecode that starts at `bytecode`; −1: not started. False
    /// where there can't be such an offset.
    [[nodiscard]] bool instr_offset(std::uint64_t instr, std::uint64_t bytecode, std::int32_t& offset) const;

    [[nodiscard]] bool has_entry_flag() const { return is_entry_ != kAbsent; }
    [[nodiscard]] bool has_shims() const { return has_shims_; }
    [[nodiscard]] bool has_bytecode_copies() const { return tlbc_index_ != kAbsent; }
    [[nodiscard]] bool instr_is_pointer() const { return instr_is_pointer_; }

  private:
    [[nodiscard]] Activity activity_of(const std::byte* bytes, std::uint64_t code) const;

    std::uint32_t begin_ = 0;
    std::uint32_t end_ = 0;
    Offset previous_;
    Offset code_;
    Offset instr_;
    Offset owner_;
    Offset generator_ = kAbsent;  ///< 3.8 to 3.10: f_gen
    Offset is_entry_;
    Offset tlbc_index_;
    Offset running_;
    RunningKind running_kind_;
    InstrKind instr_kind_;
    bool instr_is_pointer_;
    bool has_shims_;
    std::uint32_t generator_owner_;
    std::uint32_t shim_owners_[2];
    std::uint64_t tag_mask_;
};

}  // namespace memattach::python
