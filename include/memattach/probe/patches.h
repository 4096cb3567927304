/// What memattach has changed in a target's memory, and how to undo it.
///
/// The table lies in memory that the tracing and the analysing process share. An entry is complete before the
/// target is changed and is cleared after it has been changed back, so whichever half survives finds all that
/// there is to undo:
///
///     set:    entry.original, entry.patched, entry.address      → write to the target
///     undo:   write the original to the target                  → entry.address = 0
///
/// Writes go through /proc/PID/mem: they need no stop and reach read-only private pages (kernel: FOLL_FORCE,
/// mm/gup.c; shared mappings of files are refused, so a file never changes). A descriptor that was opened
/// before an exec keeps leading to the memory from before it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "memattach/base/address.h"

namespace memattach::probe {

/// Shared memory; filled with zeros is empty.
struct PatchTable {
    static constexpr std::size_t kCapacity = 4096;
    static constexpr std::size_t kPageCapacity = 4096;
    struct Entry {
        std::atomic<std::uint64_t> address;  ///< 0: free
        std::atomic<std::uint64_t> original;
        std::atomic<std::uint64_t> patched;
        std::atomic<std::uint32_t> size_bytes;  ///< 1 (int3) or 8 (a pointer)
        /// The stack pointer modulo 16 at the last hit, plus one; 0: not known. The same at every hit, and
        /// another one behind a push or a pop.
        std::atomic<std::uint32_t> stack_phase;
        std::atomic<std::uint32_t> hits;  ///< what is hit most is undone first
    };
    std::array<Entry, kCapacity> entries;
    std::atomic<std::uint32_t> used;  ///< entries behind this were never used
    /// Addresses of the code pages in which a byte was ever changed, for the comparison at the end.
    std::array<std::atomic<std::uint64_t>, kPageCapacity> pages;
    std::atomic<std::uint32_t> page_count;
    std::atomic<std::uint32_t> pages_lost;  ///< not noted, because the table was full
    std::atomic<std::int32_t> stopped_tid;  ///< the thread whose stop was told last
};

/// Reads or writes `size_bytes` (at most 8) at `address`, through a /proc/PID/mem descriptor.
std::optional<std::uint64_t> read_word(int memory_fd, std::uint64_t address, std::size_t size_bytes);
bool write_word(int memory_fd, std::uint64_t address, std::uint64_t value, std::size_t size_bytes);

/// Makes one change, noted in `table` first. Returns its entry, or nothing where the table is full, the
/// target doesn't hold `original` there or can't be written to; the target is as it was then. `is_original`:
/// that it holds that has just been read.
std::optional<std::size_t> apply_patch(PatchTable& table, int memory_fd, std::uint64_t address,
                                       std::uint64_t original, std::uint64_t patched, std::size_t size_bytes,
                                       bool is_original = false);

/// Undoes one change. Where the target holds something else by now (unmapped, replaced by the program
/// itself), it is left alone; `is_there`: a thread has just been stopped by it.
void undo_patch(PatchTable& table, int memory_fd, std::size_t entry, bool is_there = false);

/// Whether a thread with these registers has executed an int3 of the table and nothing since: it stands
/// behind the first byte of an instruction that hasn't been carried out.
[[nodiscard]] bool stands_behind_int3(const PatchTable& table, std::uint64_t instruction_pointer,
                                      std::uint64_t stack_pointer);

/// Undoes all that the table lists, in the process that `memory_fd` leads to: the target, or a child that
/// copied the target's memory (`clear` false: the target's own changes stay noted). Returns how many places
/// were changed back. Those that were hit most come first. Allocates nothing; may be called in a signal
/// handler.
std::size_t undo_all_patches(PatchTable& table, int memory_fd, bool clear);

}  // namespace memattach::probe
