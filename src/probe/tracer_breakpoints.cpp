#include "memattach/probe/tracer.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kInt3 = 0xCC;

}  // namespace

bool Tracer::plant(std::uint64_t address, const std::optional<Instruction>& displaced, std::byte original,
                   std::uint64_t tag, bool is_original) {
    const auto found = breakpoints_.find(address);
    if (found != breakpoints_.end() && found->second.uses > 0) {
        ++found->second.uses;
        return true;
    }
    Breakpoint& breakpoint = breakpoints_[address];
    breakpoint.displaced = displaced;
    breakpoint.original = original;
    breakpoint.tag = tag;
    const auto patch = apply_patch(table_, memory_.get(), address, std::to_integer<std::uint64_t>(original),
                                   kInt3, 1, is_original);
    if (!patch) return false;
    breakpoint.patch = *patch;
    breakpoint.uses = 1;
    return true;
}

void Tracer::remove(std::uint64_t address, bool is_there) {
    const auto found = breakpoints_.find(address);
    if (found == breakpoints_.end() || found->second.uses == 0) return;
    Breakpoint& breakpoint = found->second;
    if (--breakpoint.uses > 0) return;
    undo_patch(table_, memory_.get(), breakpoint.patch, is_there || address == served_address_);
    remember_removed({address, std::to_integer<std::uint64_t>(breakpoint.original), kInt3, 1});
}

bool Tracer::planted(std::uint64_t address) const {
    const auto found = breakpoints_.find(address);
    return found != breakpoints_.end() && found->second.uses > 0;
}

/// Whether a thread that a SIGTRAP has stopped right behind the first byte of `breakpoint` must have executed
/// the int3: it stands within an instruction, or with the stack as it is before the push or pop. Elsewhere
/// the signal may be one that somebody sent.
bool Tracer::is_sure(const Breakpoint& breakpoint, const user_regs_struct& regs) const {
    if (breakpoint.uses == 0 || !breakpoint.displaced) return false;
    const Instruction& displaced = *breakpoint.displaced;
    if (displaced.length > 1) return !leads_on_alone(breakpoint);
    if (displaced.op != Op::push && displaced.op != Op::pop) return false;
    return table_.entries[breakpoint.patch].stack_phase.load(std::memory_order_relaxed) == regs.rsp % 16 + 1;
}

/// endbr64 and other no-ops with a prefix: what follows the int3 is a no-op as well.
bool Tracer::leads_on_alone(const Breakpoint& breakpoint) {
    return breakpoint.displaced && breakpoint.displaced->op == Op::nop && breakpoint.displaced->length > 1 &&
           (breakpoint.original == std::byte{0xF3} || breakpoint.original == std::byte{0x66});
}

bool Tracer::redirect(std::uint64_t slot, std::uint64_t original, std::uint64_t alias) {
    if (redirects_.count(slot) != 0) return true;
    const auto patch = apply_patch(table_, memory_.get(), slot, original, alias, 8);
    if (!patch) return false;
    redirects_[slot] = *patch;
    return true;
}

void Tracer::undo_redirect(std::uint64_t slot) {
    const auto found = redirects_.find(slot);
    if (found == redirects_.end()) return;
    const PatchTable::Entry& entry = table_.entries[found->second];
    remember_removed({slot, entry.original.load(), entry.patched.load(), 8});
    undo_patch(table_, memory_.get(), found->second);
    redirects_.erase(found);
}

void Tracer::remember_all() {
    for (const auto& [address, breakpoint] : breakpoints_)
        if (breakpoint.uses > 0)
            remember_removed({address, std::to_integer<std::uint64_t>(breakpoint.original), kInt3, 1});
    for (const auto& [slot, index] : redirects_) {
        const PatchTable::Entry& entry = table_.entries[index];
        remember_removed({slot, entry.original.load(), entry.patched.load(), 8});
    }
}

void Tracer::remember_removed(const Removed& removed) {
    // Each address once, else one that comes and goes with every sample pushes out all others.
    Removed* slot = removed_.data();
    for (Removed& known : removed_) {
        if (known.address == removed.address) {
            slot = &known;
            break;
        }
        if (known.order < slot->order) slot = &known;
    }
    *slot = removed;
    slot->order = ++removals_;
}

}  // namespace memattach::probe
