/// Which machine instructions to watch so that every allocation of a process is seen once.
///
///     SiteMap map = find_sites(pid, memory, runtime);
///     for (const Site& site : map.sites) …            // plant at site.address when site.group is armed
///     for (const Redirect& r : map.redirects) …       // switch while r.group is armed
///
/// A process has one allocator that counts: the `malloc` that the dynamic linker would bind for the
/// interpreter (LD_PRELOAD, then the executable, then its libraries in load order). It is found by doing that
/// lookup in the target's own memory, with no file, so that deleted files, containers and stripped builds
/// make no difference. Python's small-object allocator is found through the tables of function pointers that
/// PyMem_SetAllocator sets: they say which function serves now, and so also PYTHONMALLOC=malloc, =debug and
/// hooks such as tracemalloc's.
///
/// What is counted where (nothing twice):
///   object   requests that Python's small-object allocator serves itself (pymalloc: up to 512 bytes;
///            mimalloc: all)
///   malloc   the malloc family, which is also where pymalloc sends larger requests; of glibc's, large blocks
///            may be a group of their own (large_entry.h)
///   mmap     mappings that the program makes itself, not an allocator on a caller's behalf
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

/// The order of the arguments is in Site::args; what happens with them is the kind.
enum class SiteKind : std::uint8_t {
    allocate,      ///< returns a new block: malloc, calloc, memalign, operator new, mmap …
    allocate_out,  ///< posix_memalign: returns 0 and writes the block's address to *out
    reallocate,    ///< realloc: ends `old` and returns a new block, unless it returns NULL (then `old` lives
                   ///< on); old = NULL only allocates; size 0 only frees (result NULL or a minimal block)
    reallocate_mapping,  ///< mremap: as reallocate; failure is MAP_FAILED (−1), and `old_size` is known
    release,             ///< free, operator delete
    release_range,       ///< munmap: ends [old, old + size)
};

/// Where an argument is at the function's first instruction (System V x86-64).
enum class Argument : std::uint8_t { none, rdi, rsi, rdx, rcx, r8, r9 };

struct Arguments {
    Argument size = Argument::none;   ///< bytes …
    Argument count = Argument::none;  ///< … times this where it isn't none (a product that overflows fails)
    Argument old = Argument::none;    ///< the block that ends
    Argument old_size = Argument::none;  ///< mremap
    Argument out = Argument::none;       ///< posix_memalign
    Argument flags = Argument::none;     ///< mmap: only MAP_ANONYMOUS (0x20) is memory; a file's pages aren't
};

/// [start, end)
struct AddressRange {
    base::Address start, end;
    [[nodiscard]] bool contains(base::Address a) const { return start <= a && a < end; }
};

struct Site {
    base::Address address;  ///< of the function's first instruction
    SiteKind kind = SiteKind::allocate;
    trace::AllocKind group = trace::AllocKind::malloc;  ///< armed and disarmed together, see also is_release
    Arguments args;
    /// Requests above this are passed on by the function to another site, which counts them: ignore them
    /// here. 0: no limit.
    std::uint64_t limit_bytes = 0;
    /// What the function's caller added to what the program asked for (pymalloc under its debug hooks):
    /// subtract it from the size, never below 1.
    std::uint64_t padding_bytes = 0;
    std::string symbol;  ///< "malloc", "_PyObject_Malloc"
    std::string module;  ///< path of the file that holds it, as the target sees it

    [[nodiscard]] bool is_release() const {
        return kind == SiteKind::release || kind == SiteKind::release_range;
    }
};

/// Profile-guided builds (every distribution's) inline pymalloc's fast path into two hundred callers, behind
/// the test `table.malloc == &_PyObject_Malloc`; breakpoints on that function would miss them all. While the
/// group is armed, the table therefore holds another address that leads to the same function: past its
/// `endbr64`, a no-op in front of it, or a `jmp` to it somewhere in the same module. The test fails and the
/// call is made. Left behind it would change nothing but a few nanoseconds; still it is undone like a
/// breakpoint: only where the slot still holds `alias` (the program may have set its own since), and it is an
/// aligned 8-byte write. A slot whose value isn't `original` when arming is left alone: the program has
/// changed its allocator; call find_sites again.
struct Redirect {
    base::Address slot;  ///< of the function pointer in the allocator table
    std::uint64_t original = 0;
    std::uint64_t alias = 0;
    trace::AllocKind group = trace::AllocKind::object;
    bool is_release = false;
};

struct SiteMap {
    std::vector<Site> sites;
    std::vector<Redirect> redirects;
    /// A hit whose return address lies in one of these comes from inside an allocator: part of a call that
    /// is counted already (realloc → malloc), or its own footprint (malloc → mmap, pymalloc's arenas).
    /// Sorted, not overlapping. Per group of the site that was hit.
    std::vector<AddressRange> inside_malloc;  ///< for hits of the malloc group
    std::vector<AddressRange> inside_object;  ///< for hits of the object group
    std::vector<AddressRange> inside_mmap;    ///< for hits of the mmap group
    /// mmap group only: private anonymous mappings (flags & 0x22 == 0x22) asked for from here are the
    /// interpreter's own: arenas, frame stacks.
    std::vector<AddressRange> interpreter_text;
    /// "glibc", "musl", "jemalloc", "tcmalloc", "mimalloc" or "malloc of <module>"
    std::string malloc_name;
    /// "pymalloc", "pymalloc_debug", "malloc", "malloc_debug", "mimalloc", "hooked"; empty where small
    /// objects can't be seen, and then `notes` says why.
    std::string object_name;
    std::vector<std::string> notes;
};

/// A call that an allocator makes by jumping to another of its entries (glibc: realloc(NULL, n) → malloc(n))
/// has the same stack pointer and the same return address as the hit before it on that thread; whoever
/// handles hits must drop the second. Everything that can be told by the return address is in
/// SiteMap::inside_*.
///
/// Throws base::Error where the process can't be read or has no malloc. What is read is checked: function
/// pointers lie in executable mappings, walks are bounded.
SiteMap find_sites(int pid, const process::Memory& memory, const python::Runtime& runtime);

}  // namespace memattach::probe
