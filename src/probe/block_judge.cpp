#include "block_judge.h"

#include <algorithm>
#include <cstring>

namespace memattach::probe {
namespace {

constexpr std::uint64_t kLowestPointer = 0x10000;
constexpr std::uint64_t kHighestPointer = std::uint64_t{1} << 47;

// Include/object.h, 3.8–3.14
constexpr std::uint64_t kReady = 1UL << 12, kHasGc = 1UL << 14;
constexpr std::uint64_t kLong = 1UL << 24, kTuple = 1UL << 26, kBytes = 1UL << 27, kUnicode = 1UL << 28;
constexpr std::uint64_t kIsType = 1UL << 31;
// struct _typeobject has the same order in 3.8–3.14: tp_name, tp_basicsize, tp_itemsize, … tp_flags
constexpr std::uint64_t kBasicSizeAfterName = 8, kItemSizeAfterName = 16, kFlagsAfterName = 144;
/// sizeof(PyASCIIObject), with a NUL behind it: 48 bytes in 3.8–3.11, 40 since 3.12 (cpython/unicodeobject.h)
constexpr std::uint64_t kCompactString = 41;
constexpr std::size_t kMostTypes = 8192;

/// Where an object may begin in its block: at once; behind the collector's header; behind two more words
/// (3.12+: dictionary and weak references); behind the debug hooks' size and serial number.
constexpr std::array<std::uint64_t, 5> kBegins = {0, 16, 32, 48, 24};

bool is_pointer(std::uint64_t word) {
    return word >= kLowestPointer && word < kHighestPointer;
}

/// Zero and −1 (no hash yet) are what is there before something is.
bool is_set(std::uint64_t word) {
    return word != 0 && word != ~std::uint64_t{0};
}

/// Not what a pointer looks like; immortal ones (3.12+) have all their bits in the lower half, or in the
/// upper 16 bits (3.14+).
bool is_reference_count(std::uint64_t word) {
    return (word & 0xFFFFFFFF) != 0 && (word >> 32 & 0xFFFF) == 0;
}

bool is_link(std::uint64_t word, std::uint64_t address, std::uint64_t pool_bytes) {
    return word == 0 || (word / pool_bytes == address / pool_bytes && word % 16 == 0);
}

/// Into another block of the same page; of what size those are is known to the page alone.
bool is_mimalloc_link(std::uint64_t word, std::uint64_t address, std::uint64_t size_bytes) {
    constexpr std::uint64_t kSmallest = 16 << 10, kSmallPage = 64 << 10, kMediumPage = 512 << 10;
    if (word % 8 != 0 || word == address) return false;
    if (size_bytes <= kSmallest) return word / kSmallPage == address / kSmallPage;
    return (word > address ? word - address : address - word) < kMediumPage;
}

/// struct _object, free-threaded 3.13–3.15: ob_tid, ob_ref_local in the upper half of the next word,
/// ob_ref_shared above two bits of its state, ob_type.
bool is_in_use(const BlockContent& content, std::size_t type_index) {
    return content.words[type_index - 2] >> 32 != 0 || content.words[type_index - 1] >> 2 != 0;
}

struct Changed {
    std::uint32_t set = 0, changed = 0, pointers = 0, pointers_changed = 0;
};

Changed count_changes(const BlockContent& before, const BlockContent& now, std::size_t from) {
    Changed out;
    for (std::size_t i = from; i < std::min(before.count, now.count); ++i) {
        const bool differs = before.words[i] != now.words[i];
        if (!is_set(before.words[i])) continue;
        ++out.set;
        out.changed += differs ? 1 : 0;
        if (!is_pointer(before.words[i])) continue;
        ++out.pointers;
        out.pointers_changed += differs ? 1 : 0;
    }
    return out;
}

/// pymalloc's, and what glibc's caches keep by the thread: these are reused at once, and content tells.
constexpr std::uint64_t kSmall = 512;
/// Of numbers, mostly.
constexpr std::uint64_t kLarge = 96 << 10;

Sight compare_untyped(const BlockContent& before, const BlockContent& now, std::uint64_t size_bytes,
                      bool keeps_numbers) {
    constexpr std::uint32_t kFew = 4;
    const Changed c = count_changes(before, now, 0);
    bool other = false;
    if (size_bytes > kSmall) {
        other = c.pointers >= kFew && c.pointers_changed == c.pointers;
        if (size_bytes > kLarge && c.pointers < kFew && !keeps_numbers)
            other = c.set >= kFew && 4 * c.changed >= 3 * c.set;
    } else if (c.pointers >= 2) {
        other = 2 * c.pointers_changed > c.pointers;
    } else {
        other = c.set >= 2 && 2 * c.changed > c.set;
    }
    return other ? Sight::changed : Sight::same;
}

}  // namespace

BlockTypes::BlockTypes(const process::Memory& memory, const python::Layout& layout, bool free_threaded)
    : memory_(memory),
      type_offset_(layout.object.type == python::kAbsent ? 8 : layout.object.type),
      name_offset_(layout.type.name == python::kAbsent ? 24 : layout.type.name),
      free_threaded_(free_threaded) {}

std::optional<BlockTypes::Known> BlockTypes::read_type(std::uint64_t address) {
    const auto found = known_.find(address);
    if (found != known_.end()) return found->second;
    const base::Address type(address);
    const auto meta = memory_.read<std::uint64_t>(type + type_offset_);
    if (!meta || !is_pointer(*meta)) return std::nullopt;
    const base::Address name = type + name_offset_;
    Known known;
    const auto flags = memory_.read<std::uint64_t>(name + kFlagsAfterName);
    const auto basic_size = memory_.read<std::uint64_t>(name + kBasicSizeAfterName);
    const auto item_size = memory_.read<std::uint64_t>(name + kItemSizeAfterName);
    const auto meta_flags =
        memory_.read<std::uint64_t>(base::Address(*meta) + name_offset_ + kFlagsAfterName);
    if (!flags || !basic_size || !item_size || !meta_flags) return std::nullopt;
    if ((*flags & kReady) == 0 || (*meta_flags & kIsType) == 0 || (*meta_flags & kReady) == 0)
        return std::nullopt;
    known.flags = *flags;
    known.basic_size = *basic_size;
    known.item_size = *item_size;
    if (known_.size() >= kMostTypes) known_.clear();
    known_.emplace(address, known);
    return known;
}

BlockType BlockTypes::recognise(const BlockContent& content, std::uint64_t size_bytes) {
    for (const std::uint64_t begin : kBegins) {
        const std::size_t index = (begin + type_offset_) / 8;
        if (index >= content.count || !is_pointer(content.words[index])) continue;
        if (free_threaded_ ? index < 3 || !is_in_use(content, index)
                           : !is_reference_count(content.words[index - type_offset_ / 8]))
            continue;
        const auto known = read_type(content.words[index]);
        if (!known) continue;
        // A compact string has only the front part of its type's structure.
        const std::uint64_t least_size = (known->flags & kUnicode) != 0 ? kCompactString : known->basic_size;
        if (least_size > size_bytes) continue;
        BlockType type;
        type.index = static_cast<std::uint8_t>(index);
        const bool is_number =
            (known->flags & kHasGc) == 0 && known->item_size == 0 && known->basic_size == type_offset_ + 16;
        if ((known->flags & kUnicode) != 0) {
            type.changes = BlockType::Changes::text;
        } else if ((known->flags & (kLong | kBytes | kTuple)) != 0 || is_number) {
            type.changes = BlockType::Changes::never;
        } else if ((known->flags & kHasGc) == 0) {
            type.changes = BlockType::Changes::seldom;
        }
        return type;
    }
    return {};
}

Sight compare(const BlockContent& before, const BlockContent& now, BlockType type, std::uint64_t address,
              std::uint64_t size_bytes, const FreeMarks& marks) {
    if (now.count == 0) return Sight::same;
    if (type.index == 0 || type.index >= std::min(before.count, now.count)) {
        // A link that was there when the block lived is part of what it holds; the list's last is NULL.
        const bool is_new = before.count == 0 || now.words[0] != before.words[0] || now.words[0] == 0;
        if (marks.pool_bytes != 0 && is_new && is_link(now.words[0], address, marks.pool_bytes))
            return Sight::maybe_free;
        if (marks.mimalloc && before.settled != 0 && now.words[0] != before.words[0] &&
            is_mimalloc_link(now.words[0], address, size_bytes))
            return Sight::changed;
        return before.settled == 0 ? Sight::same
                                   : compare_untyped(before, now, size_bytes, marks.keeps_numbers);
    }
    const std::size_t t = type.index;
    if (now.words[t] != before.words[t]) return Sight::changed;
    if (marks.split_references ? t < 3 || !is_in_use(now, t) : !is_reference_count(now.words[t - 1]))
        return Sight::changed;
    // Sizes of what is fixed are there from the start.
    const bool is_fixed =
        type.changes == BlockType::Changes::never || type.changes == BlockType::Changes::text;
    if (is_fixed && size_bytes > 8 * (t + 2) && t + 1 < now.count && is_set(before.words[t + 1]) &&
        before.words[t + 1] != now.words[t + 1])
        return Sight::changed;
    if (before.settled == 0) return Sight::same;
    switch (type.changes) {
        case BlockType::Changes::never:
            return count_changes(before, now, t + 1).changed > 0 ? Sight::changed : Sight::same;
        case BlockType::Changes::text: {
            // length, hash, state, … (PyASCIIObject, 3.8–3.14)
            BlockContent same = now;
            if (t + 3 < now.count) same.words[t + 3] = before.words[t + 3];
            return count_changes(before, same, t + 1).changed > 0 ? Sight::changed : Sight::same;
        }
        case BlockType::Changes::seldom: {
            const Changed c = count_changes(before, now, t + 1);
            return c.set >= 2 && 2 * c.changed > c.set ? Sight::changed : Sight::same;
        }
        case BlockType::Changes::freely: {
            const Changed c = count_changes(before, now, t + 1);
            return c.pointers > 0 && c.pointers_changed == c.pointers ? Sight::changed : Sight::same;
        }
    }
    return Sight::same;
}

std::optional<std::uint64_t> to_next_size(std::uint64_t chunk_size) {
    constexpr std::uint64_t kIsMapped = 2, kFlags = 7, kLargest = std::uint64_t{1} << 46;
    const std::uint64_t size = chunk_size & ~kFlags;
    if ((chunk_size & kIsMapped) != 0 || size < 32 || size > kLargest || size % 16 != 0) return std::nullopt;
    return size - 8;
}

bool is_freed_chunk(const BlockContent& before, const BlockContent& now, std::uint64_t address,
                    std::optional<std::uint64_t> next_size) {
    constexpr std::uint64_t kPreviousInUse = 1, kLargestCached = 1040;
    if (before.before != 0 && (before.before & ~kPreviousInUse) != (now.before & ~kPreviousInUse))
        return true;
    if (next_size && (*next_size & kPreviousInUse) == 0) return true;
    if ((now.before & ~std::uint64_t{7}) > kLargestCached || now.count < 2 || before.count < 2) return false;
    const std::uint64_t key = now.words[1];
    const std::uint64_t link = now.words[0] ^ (address >> 12);
    const bool is_link = link == 0 || (link % 16 == 0 && (link ^ address) >> 36 == 0);
    return is_link && key != before.words[1] && key >= kHighestPointer;
}

std::optional<PoolCopy> read_pool(const process::Memory& memory, std::uint64_t address,
                                  std::uint64_t pool_bytes, std::vector<std::byte>& bytes) {
    bytes.resize(pool_bytes);
    PoolCopy copy;
    copy.address = address;
    const auto header = [](PoolHeader& h) { return std::as_writable_bytes(std::span(&h, 1)); };
    const base::Address at(address);
    const std::array<process::Memory::Piece, 3> pieces = {
        {{at, header(copy.first)}, {at, std::span(bytes)}, {at, header(copy.last)}}};
    if (memory.read_pieces(pieces) != pieces.size()) return std::nullopt;
    copy.bytes = bytes;
    return copy;
}

std::optional<std::vector<std::uint32_t>> free_blocks(const PoolCopy& pool) {
    const PoolHeader& header = pool.first;
    // The links between pools may change without a change of this one.
    if (header.count != pool.last.count || header.freeblock != pool.last.freeblock ||
        header.size_class != pool.last.size_class || header.next_offset != pool.last.next_offset)
        return std::nullopt;
    if (!header.is_of_pool(pool.bytes.size()) || header.next_offset < sizeof header ||
        header.next_offset > pool.bytes.size() + header.block_bytes())
        return std::nullopt;
    const std::uint64_t size = header.block_bytes();
    const std::uint64_t carved = header.carved();
    std::vector<std::uint32_t> free;
    if (header.in_use() == 0) {  // its list means nothing any more
        for (std::uint64_t i = 0; i < carved; ++i)
            free.push_back(static_cast<std::uint32_t>(sizeof header + i * size));
        return free;
    }
    // The list has as many blocks as are carved and not in use; any other length is that of a copy that mixes
    // two moments.
    if (carved < header.in_use()) return std::nullopt;
    std::uint64_t next = header.freeblock;
    while (next != 0) {
        const std::uint64_t at = next - pool.address;
        if (free.size() == carved || at < sizeof header || at + size > pool.bytes.size() ||
            (at - sizeof header) % size != 0)
            return std::nullopt;
        free.push_back(static_cast<std::uint32_t>(at));
        std::memcpy(&next, pool.bytes.data() + at, sizeof next);
    }
    if (free.size() != carved - header.in_use()) return std::nullopt;
    return free;
}

std::optional<bool> is_free_in_pool(const PoolCopy& pool, std::uint64_t offset) {
    const auto free = free_blocks(pool);
    if (!free) return std::nullopt;
    if ((offset - sizeof(PoolHeader)) % pool.first.block_bytes() != 0) return true;  // of another size now
    if (offset >= pool.first.next_offset || pool.first.in_use() == 0) return true;
    return std::find(free->begin(), free->end(), offset) != free->end();
}

}  // namespace memattach::probe
