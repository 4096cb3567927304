#include "bytecode_copies.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxCopies = 65'536;
constexpr std::int64_t kMaxIndex = 1 << 20;
constexpr std::uint64_t kCodeUnitBytes = 2;
constexpr std::uint64_t kMaxBytecodeBytes = 1U << 28U;

}  // namespace

BytecodeCopies::Copy BytecodeCopies::read(const Key& key) const {
    // _PyCodeArray, Include/cpython/code.h (3.14): Py_ssize_t size; char *entries[].
    const auto array = memory_.read_address(base::Address(key.code) + layout_.code.tlbc);
    if (!array || array->is_null()) return {};
    const auto size = memory_.read<std::int64_t>(*array);
    if (!size || key.index < 0 || key.index >= *size || key.index > kMaxIndex) return {};
    const auto start =
        memory_.read_address(*array + 8 + std::uint64_t{8} * static_cast<std::uint32_t>(key.index));
    // ob_size of a code object counts its code units.
    const auto units = memory_.read<std::int64_t>(base::Address(key.code) + layout_.bytes.size);
    if (!start || start->is_null() || !units || *units <= 0) return {};
    const std::uint64_t bytes = static_cast<std::uint64_t>(*units) * kCodeUnitBytes;
    return bytes <= kMaxBytecodeBytes ? Copy{start->value(), bytes} : Copy{};
}

void BytecodeCopies::place(const FrameShape& shape, std::span<const ThreadWalk::Copy> copies, RawStack& out) {
    for (std::size_t i = 0; i < copies.size() && i < out.frames.size(); ++i) {
        const auto& [index, instr] = copies[i];
        if (index == 0) continue;
        RawFrame& frame = out.frames[i];
        frame.instr_offset = -1;
        if (layout_.code.tlbc == kAbsent) continue;
        const Key key{frame.code.value(), index};
        const auto found = copies_.find(key);
        Copy copy = found != copies_.end() ? found->second : Copy{};
        if (instr - copy.start >= copy.bytes) {
            // Not known yet, or the copy has been freed and made anew elsewhere.
            copy = read(key);
            if (copies_.size() >= kMaxCopies) copies_.clear();
            copies_[key] = copy;
        }
        std::int32_t offset = -1;
        if (instr - copy.start < copy.bytes && shape.instr_offset(instr, copy.start, offset)) {
            frame.instr_offset = offset;
        }
    }
}

}  // namespace memattach::python
