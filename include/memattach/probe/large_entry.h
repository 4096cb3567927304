/// Where the C library's malloc goes with large requests alone.
///
/// Where allocations are too many to stop at each of them, what large blocks there are is seen in windows
/// only, and they are few: figures hang on one or two. But they are few enough for a breakpoint of their own,
/// at an instruction that only large requests come by. glibc's malloc has one: _int_malloc computes the bin
/// that a chunk belongs to by comparing its size with one bound after the other (malloc/malloc.c,
/// "largebin_index_64", the same from 2.3 to 2.43), and the code behind the last branch is for chunks of
/// 160 KiB and more (2.36, 2.41) or of 44 KiB (2.43).
///
///     auto large = find_large_entry(memory, sites, pthread_self_of_a_thread);
///     … breakpoint at large->point's address …
///     auto call = large->find_call(memory, regs);        // at a hit
///
/// Such functions have no symbols. So the way of a call is followed by carrying its instructions out on a
/// copy of the registers, of the stack and of what is written: nothing in the target is executed or changed.
/// malloc(8 MiB) is compared with smaller requests, and the branches on the way are taken the other way as
/// well (a process with one thread goes another way than one with several), to learn every place from which
/// that instruction is reached. Where a way can't be followed (another allocator, an instruction that isn't
/// known) there is no such place, and all is as it is without.
#pragma once

#include <sys/user.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memattach/probe/emulate.h"
#include "memattach/probe/sites.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

struct LargeEntry {
    std::uint64_t address = 0;  ///< of the instruction
    Instruction displaced;
    std::byte original{};
    /// Requests of so many bytes and more come by, smaller ones don't.
    std::uint64_t least_bytes = 0;
    std::uint8_t size_register = 0;  ///< holds the chunk's size: the request, 8 bytes, rounded up to 16

    /// A word on the stack, as bytes above rsp at the instruction, and what it must be.
    struct Word {
        std::uint32_t offset = 0;
        std::uint64_t value = 0;
        bool operator==(const Word&) const = default;
    };
    /// One way to the instruction: from malloc or calloc, by calls that return to `returns`.
    struct Way {
        std::vector<Word> returns;
        std::uint32_t return_slot_bytes = 0;  ///< where the caller's own return address is
        bool operator==(const Way&) const = default;
    };
    std::vector<Way> ways;

    /// What is asked for by a thread that has arrived at `address`, give or take 8.
    [[nodiscard]] std::uint64_t size_bytes(const user_regs_struct& regs) const {
        return std::max<std::uint64_t>(register_of(regs, size_register), 16) - 16;
    }

    struct Call {
        std::uint64_t stack_pointer = 0;  ///< where the return address is
        std::uint64_t return_address = 0;
    };
    /// The call that a thread which has arrived at `address` is in; nothing where it came from elsewhere
    /// (realloc, memalign).
    [[nodiscard]] std::optional<Call> find_call(const process::Memory& memory,
                                                const user_regs_struct& regs) const;
    /// What a request has to be larger than to come by.
    [[nodiscard]] std::uint64_t limit_bytes() const { return least_bytes - 1; }
};

/// Whether a large request to `site` comes by a LargeEntry: malloc, calloc, realloc without an old block (it
/// jumps to malloc).
[[nodiscard]] bool comes_by_large(const Site& site, const user_regs_struct& regs);

/// `fs_base`: of any thread of the process (what pthread_self() is there). Some 10,000 instructions are
/// followed, 4 ms; where nothing is found, at most ten times as many. Nothing where malloc isn't glibc's, or
/// its ways can't be followed, or be told from one another.
std::optional<LargeEntry> find_large_entry(const process::Memory& memory, const SiteMap& sites,
                                           std::uint64_t fs_base);

}  // namespace memattach::probe
