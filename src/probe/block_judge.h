/// Whether a block that is looked at again is still the one that it was. Nothing in here is sure by itself;
/// what each sign rests on:
///
///  - A typed block (a Python object) keeps its type, and an object that is not in use any more has a
///    reference count of 0: it is deallocated because the count came to 0, and who frees memory doesn't touch
///    that word where something lies in front of the object (the garbage collector's header, 3.8–3.14). In a
///    block without one the word is overwritten with a link into the pool. Free-threaded builds (3.13–3.15)
///    count in two words, the owning thread's references and all others', behind the owner's id: both come to
///    0, and only the id is overwritten.
///  - Some types never change what they hold: int, float, str, bytes, tuple. Lists, dictionaries and
///    instances do; one of which every pointer has changed (a list's items, a dictionary's table, all of an
///    instance's attributes) is taken for another one, though: a list that grows moves its items now and
///    then, but what is freed is reused for the same kind of thing at once. Of a block that is taken for
///    ended by mistake only its own few bytes are.
///  - pymalloc writes a link to the pool's next free block, or NULL, into the first word of what is freed
///    (Objects/obmalloc.c, 3.3–3.14); the pool's list of free blocks says which ones those are.
///  - mimalloc writes a link, too, and NULL into the last one. There is no cheap list to ask, but it never
///    leads out of the page (64 KiB, for blocks above 16 KiB 512 KiB, Objects/mimalloc, 3.13–3.15), and what
///    has no type lies in other pages than objects do (pycore_mimalloc.h): a table's pointers lead elsewhere.
///  - glibc's malloc has the chunk's size in front of the block, and says in the next chunk's size whether
///    this one is in use (bit 0), except for chunks in a thread's cache: these hold a mangled link (2.32+)
///    and a random key (2.34+) in the first two words (malloc/malloc.c, "tcache_put").
///  - Other blocks, tables of pointers mostly, are taken for another one's when most of their pointers have
///    changed at once. Numbers may be computed anew in the same place; of a large block of numbers most of
///    which have changed it is more often true that it is another one's, which a loop's next round has put
///    there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/probe/block_content.h"
#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "pymalloc_pool.h"

namespace memattach::probe {

/// What the block's bytes are, as far as that is known.
struct BlockType {
    enum class Changes : std::uint8_t {
        never,   ///< a word that has been set stays: int, float, bytes, tuple
        text,    ///< likewise, but for the word of flags: str
        seldom,  ///< not most of it at once: objects that refer to no others
        freely,  ///< lists, dictionaries, instances: not all of their pointers at once
    };
    std::uint8_t index = 0;  ///< the word that holds the type; 0: no object was recognised
    Changes changes = Changes::freely;
};

/// Recognises objects by their types. What it has found out about types is kept.
class BlockTypes {
  public:
    BlockTypes(const process::Memory& memory, const python::Layout& layout, bool free_threaded);
    [[nodiscard]] BlockType recognise(const BlockContent& content, std::uint64_t size_bytes);

  private:
    struct Known {
        std::uint64_t flags = 0, basic_size = 0, item_size = 0;
    };
    [[nodiscard]] std::optional<Known> read_type(std::uint64_t address);

    const process::Memory& memory_;
    std::uint64_t type_offset_, name_offset_;
    bool free_threaded_;
    std::unordered_map<std::uint64_t, Known> known_;
};

/// What tells a free block of the target's from one that lives.
struct FreeMarks {
    std::uint64_t pool_bytes = 0;   ///< of pymalloc's pools; 0: it isn't concerned
    bool mimalloc = false;          ///< the interpreter's own
    bool split_references = false;  ///< objects count as free-threaded builds have it
    /// Large blocks of numbers may be computed anew in the same place: they were there before the session.
    bool keeps_numbers = false;
};

enum class Sight : std::uint8_t { same, changed, maybe_free };

/// By content alone. `maybe_free`: its first word has become what pymalloc writes into free blocks of a pool.
[[nodiscard]] Sight compare(const BlockContent& before, const BlockContent& now, BlockType type,
                            std::uint64_t address, std::uint64_t size_bytes, const FreeMarks& marks);

/// Whether a chunk of glibc's malloc was freed: the two words of size, its own and the next chunk's, where
/// that was read.
[[nodiscard]] bool is_freed_chunk(const BlockContent& before, const BlockContent& now, std::uint64_t address,
                                  std::optional<std::uint64_t> next_size);
/// Bytes from a block to the word that holds the next chunk's size; nothing where there is none, or the size
/// makes no sense.
[[nodiscard]] std::optional<std::uint64_t> to_next_size(std::uint64_t chunk_size);

/// A pool of pymalloc, read as: header, whole, header.
struct PoolCopy {
    std::uint64_t address = 0;
    PoolHeader first{};
    std::span<const std::byte> bytes;
    PoolHeader last{};
};
/// Reads the pool at `address`, pool_bytes long, into `bytes`, which the copy refers to; nothing where it
/// can't be read.
[[nodiscard]] std::optional<PoolCopy> read_pool(const process::Memory& memory, std::uint64_t address,
                                                std::uint64_t pool_bytes, std::vector<std::byte>& bytes);
/// The offsets of its free blocks, of those that have been in use; nothing where the copy is torn, or no
/// pool.
[[nodiscard]] std::optional<std::vector<std::uint32_t>> free_blocks(const PoolCopy& pool);
/// Whether `offset` is a free block of it; nothing where the copy is torn, or no pool.
[[nodiscard]] std::optional<bool> is_free_in_pool(const PoolCopy& pool, std::uint64_t offset);

}  // namespace memattach::probe
