// What can be told of a stack that is nowhere whole for as long as it takes to read it.
//
// A generator is linked to who has called it only while it runs. In a chain of them (`yield from` in a
// recursive walk of a tree) each value that comes out unlinks all of them and the next one links them again,
// within some tens of nanoseconds: what is read ends at one that has just been left, or hasn't been entered
// yet. Who called the outermost of them stands still meanwhile, at the instruction that asks for the next
// value.

#include <algorithm>

#include "thread_walk.h"

namespace memattach::python {

void ThreadWalk::remember_whole() {
    whole_.resize(chain_.size());
    for (std::size_t i = 0; i < chain_.size(); ++i) whole_[i] = {chain_[i], instrs_[i]};
}

/// The frames that the current-frame word led to in the last look, and below them those of the last whole
/// chain that are still as they were: from the outermost one up to the first that has gone on to another
/// instruction, whose calls are others by now. False where nothing is left of it.
bool ThreadWalk::graft(const WalkContext& context, RawStack& out) {
    if (whole_.empty()) return false;
    const FrameShape& shape = context.frames;
    std::size_t hint = 0;
    const auto header_at = [&](std::uint64_t address) -> std::optional<FrameHeader> {
        const std::byte* bytes = window_.find(address + shape.begin(), shape.bytes(), hint);
        if (bytes == nullptr) return std::nullopt;
        return shape.parse(bytes);
    };
    std::size_t stable = whole_.size();  // whole_[stable] and those outside of it
    while (stable > 0) {
        const auto header = header_at(whole_[stable - 1].address);
        const std::uint64_t outer = stable < whole_.size() ? whole_[stable].address : 0;
        if (!header || header->previous != outer || header->activity == Activity::left) break;
        --stable;
        if (header->instr != whole_[stable].instr) break;
    }
    if (stable == whole_.size()) return false;

    if (word_ == 0 || follow(context, word_, Looks::first, spare_) != Chain::complete) chain_.clear();
    std::vector<std::uint64_t> addresses = chain_;
    const auto outside = std::find_if(addresses.begin(), addresses.end(), [&](std::uint64_t address) {
        return std::any_of(whole_.begin() + static_cast<std::ptrdiff_t>(stable), whole_.end(),
                           [&](const Place& place) { return place.address == address; });
    });
    auto from = whole_.begin() + static_cast<std::ptrdiff_t>(stable);
    if (outside != addresses.end())
        from =
            std::find_if(from, whole_.end(), [&](const Place& place) { return place.address == *outside; });
    addresses.erase(outside, addresses.end());
    for (; from != whole_.end(); ++from) addresses.push_back(from->address);

    out.frames.clear();
    out.truncated = out.broken = false;
    copies_.clear();
    for (const std::uint64_t address : addresses) {
        if (out.frames.size() == trace::kMaxStackDepth) {
            out.truncated = true;
            break;
        }
        const auto header = header_at(address);
        if (!header || !add_frame(context, *header, out)) return false;
    }
    if (!out.truncated && !out.frames.empty()) out.frames.back().entry = true;
    return !out.frames.empty();
}

}  // namespace memattach::python
