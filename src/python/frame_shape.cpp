#include "frame_shape.h"

#include <algorithm>
#include <cstring>

#include "memattach/base/error.h"

namespace memattach::python {
namespace {

constexpr std::uint32_t kMaxHeaderBytes = 1024;
constexpr std::int64_t kMaxInstrOffset = 1 << 28;

template <typename T>
T load(const std::byte* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

}  // namespace

FrameShape::FrameShape(const Layout& layout)
    : previous_(layout.frame.previous),
      code_(layout.frame.code),
      instr_(layout.frame.instr),
      owner_(layout.frame.owner),
      is_entry_(layout.frame.is_entry),
      tlbc_index_(layout.frame.tlbc_index),
      running_(layout.running_after_instr == kAbsent ? kAbsent
                                                     : layout.frame.instr + layout.running_after_instr),
      running_kind_(layout.running_kind),
      instr_kind_(layout.instr_kind),
      instr_is_pointer_(layout.instr_kind == InstrKind::prev_instr_ptr ||
                        layout.instr_kind == InstrKind::instr_ptr),
      has_shims_(layout.frame.owner != kAbsent &&
                 (layout.owner_shim != kAbsent || layout.owner_cstack != kAbsent)),
      generator_owner_(layout.owner_generator),
      shim_owners_{layout.owner_shim, layout.owner_cstack},
      tag_mask_(layout.stackref_tag_mask) {
    if (!has_shims_ && generator_owner_ == kAbsent) owner_ = kAbsent;
    // PyFrameObject up to 3.10 (Include/cpython/frameobject.h): PyObject *f_gen; int f_lasti;
    if (instr_kind_ == InstrKind::lasti_bytes || instr_kind_ == InstrKind::lasti_units)
        generator_ = instr_ - 8;
    begin_ = kAbsent;
    const auto include = [this](Offset offset, std::uint32_t bytes) {
        if (offset == kAbsent) return;
        begin_ = std::min(begin_, offset);
        end_ = std::max(end_, offset + bytes);
    };
    include(previous_, 8);
    include(code_, 8);
    include(instr_, instr_is_pointer_ ? 8 : 4);
    include(owner_, 1);
    include(generator_, 8);
    include(is_entry_, 1);
    include(tlbc_index_, 4);
    include(running_, running_kind_ == RunningKind::stack_top ? 4 : 1);
    if (end_ <= begin_ || end_ - begin_ > kMaxHeaderBytes || previous_ == kAbsent || code_ == kAbsent ||
        instr_ == kAbsent) {
        base::throw_error(
            "the frame layout for this Python makes no sense (previous {}, code {}, instruction {})",
            previous_, code_, instr_);
    }
    const auto relative = [this](Offset& offset) {
        if (offset != kAbsent) offset -= begin_;
    };
    for (Offset* offset :
         {&previous_, &code_, &instr_, &owner_, &generator_, &is_entry_, &tlbc_index_, &running_})
        relative(*offset);
}

FrameHeader FrameShape::parse(const std::byte* bytes) const {
    FrameHeader header;
    header.previous = load<std::uint64_t>(bytes + previous_);
    header.code = load<std::uint64_t>(bytes + code_) & ~tag_mask_;
    header.instr =
        instr_is_pointer_ ? load<std::uint64_t>(bytes + instr_) : load<std::uint32_t>(bytes + instr_);
    if (owner_ != kAbsent) {
        const std::uint32_t owner = load<std::uint8_t>(bytes + owner_);
        header.shim = has_shims_ && (owner == shim_owners_[0] || owner == shim_owners_[1]);
        header.is_generator = owner == generator_owner_;
    }
    if (generator_ != kAbsent) header.is_generator = load<std::uint64_t>(bytes + generator_) != 0;
    if (is_entry_ != kAbsent) header.is_entry = load<std::uint8_t>(bytes + is_entry_) != 0;
    if (tlbc_index_ != kAbsent) header.tlbc_index = load<std::int32_t>(bytes + tlbc_index_);
    header.activity = activity_of(bytes, header.code);
    return header;
}

Activity FrameShape::activity_of(const std::byte* bytes, std::uint64_t code) const {
    if (running_kind_ == RunningKind::code_cleared) return code != 0 ? Activity::live : Activity::left;
    if (running_ == kAbsent) return Activity::unknown;
    switch (running_kind_) {
        case RunningKind::executing_flag:
            return load<std::int8_t>(bytes + running_) != 0 ? Activity::live : Activity::left;
        case RunningKind::state_zero:
            return load<std::int8_t>(bytes + running_) == 0 ? Activity::live : Activity::left;
        case RunningKind::stack_top:
            return load<std::int32_t>(bytes + running_) < 0 ? Activity::innermost : Activity::unknown;
        default:
            return Activity::unknown;
    }
}

bool FrameShape::instr_offset(std::uint64_t instr, std::uint64_t bytecode, std::int32_t& offset) const {
    std::int64_t bytes = 0;
    switch (instr_kind_) {
        case InstrKind::lasti_bytes:
            bytes = static_cast<std::int32_t>(instr);
            break;
        case InstrKind::lasti_units: {
            const auto units = static_cast<std::int32_t>(instr);
            bytes = units < 0 ? units : std::int64_t{units} * 2;
            break;
        }
        // A new frame's prev_instr is the code unit before the first one (3.11, 3.12, pycore_frame.h).
        case InstrKind::prev_instr_ptr:
        case InstrKind::instr_ptr:
            bytes = static_cast<std::int64_t>(instr - bytecode);
            break;
    }
    if (bytes < -2 || bytes >= kMaxInstrOffset || (bytes & 1) != 0) {
        if (bytes != -1) return false;
    }
    offset = bytes < 0 ? -1 : static_cast<std::int32_t>(bytes);
    return true;
}

}  // namespace memattach::python
