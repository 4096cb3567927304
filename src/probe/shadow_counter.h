#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "memattach/probe/planned_site.h"

namespace memattach::probe {

/// What the stubs count with, and are told: five pages that the keeper and the shadow share. What the shadow
/// runs may write to it as well: nothing in it is to be relied upon.
struct ShadowCounters {
    static constexpr std::size_t kSites = 64;
    static constexpr std::size_t kMarks = 1024;
    static constexpr std::size_t kWatched = 1024;
    static constexpr std::uint64_t kNobody = ~std::uint64_t{0};  ///< no block's address; free(NULL) is common
    static constexpr std::uint64_t kNever = ~std::uint64_t{0} >> 1;

    std::array<std::uint64_t, kSites> hits;
    /// Hits of allocating sites until the next stop, by group.
    std::array<std::uint64_t, 2> countdown;
    /// Hits of allocating sites, of both groups, until the next mark, and from one to the next.
    std::uint64_t until_mark, mark_every;
    /// How many marks there are, and with which one it stops; at most kMarks.
    std::uint64_t marked, last_mark;
    /// The processor's time stamp counter when it began, 0: it hasn't, and at each mark.
    std::uint64_t start_ticks;
    std::array<std::uint64_t, kMarks> marks;
    /// Of the entry: where it leads to, and two registers.
    std::uint64_t entry, kept_rax, kept_rdx;
    /// A request with an argument above this stops in any case.
    std::uint64_t big_bytes;
    /// Blocks whose end stops; the place of one is its address / 16, modulo kWatched.
    std::array<std::uint64_t, kWatched> watched;
};
inline constexpr std::uint64_t kCounterBytes = 5 * 4096;
static_assert(sizeof(ShadowCounters) <= kCounterBytes);

/// What the sites lead to: each instruction there takes time, and runs that are timed need to know little.
enum class Stubs : std::uint8_t {
    marking,   ///< allocating sites count up to the next mark, others are as they were
    counting,  ///< all there is
};

/// Code that counts, stops where it has been told to, and goes on: what a jump at a site leads to.
///
///         inc hits[site]
///         cmp size, big_bytes; ja stop      (allocating sites)
///         dec countdown[group]; jz stop                     (allocating sites)
///         dec until_mark; jz mark                           (allocating sites)
///     marked:
///         cmp old, watched[old / 16 % 1024]; je stop        (sites that end a block)
///     go_on: the instructions that the jump replaces, moved here; jmp behind them
///     stop:  int3; jmp go_on
///     mark:  marks[marked++] = rdtsc; until_mark = mark_every; if marked == last_mark, stop; jmp marked
///
/// Where it is only to mark: dec until_mark; jz mark, and what comes from go_on on.
struct CounterStub {
    static constexpr std::size_t kJumpBytes = 5;
    std::array<std::byte, 384> code{};
    std::size_t size_bytes = 0;
    std::size_t stop_offset = 0;               ///< of what follows the int3: where a stopped thread's pc is
    std::array<std::byte, kJumpBytes> jump{};  ///< to be put at the site
};

/// `stub_at`, `counters_at`: where the stub's code and the counters will be, within 2 GB of the site;
/// `index`: of the site in the counters, `group`: likewise. Status flags are not kept: at a function's entry
/// nobody asks for them. Nothing where the instructions can't be moved.
std::optional<CounterStub> make_counter(const PlannedSite& site, std::size_t index, std::size_t group,
                                        std::uint64_t stub_at, std::uint64_t counters_at, Stubs kind);

/// Code that notes the time stamp counter in `start_ticks` and goes to `entry` with all registers, flags and
/// the stack as they were. Within 2 GB of the counters.
struct EntryStub {
    std::array<std::byte, 64> code{};
    std::size_t size_bytes = 0;
};
EntryStub make_entry(std::uint64_t stub_at, std::uint64_t counters_at);

}  // namespace memattach::probe
