#include "memattach/probe/patches.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

namespace memattach::probe {
namespace {

constexpr std::uint64_t kPageMask = ~std::uint64_t{4095};

void note_page(PatchTable& table, std::uint64_t address) {
    const std::uint64_t page = address & kPageMask;
    const std::uint32_t count = table.page_count.load(std::memory_order_relaxed);
    for (std::uint32_t i = 0; i < count; ++i) {
        if (table.pages[i].load(std::memory_order_relaxed) == page) return;
    }
    if (count == PatchTable::kPageCapacity) {
        table.pages_lost.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    table.pages[count].store(page, std::memory_order_relaxed);
    table.page_count.store(count + 1, std::memory_order_release);
}

std::optional<std::size_t> free_entry(const PatchTable& table) {
    const std::uint32_t used = table.used.load(std::memory_order_relaxed);
    for (std::uint32_t i = 0; i < used; ++i) {
        if (table.entries[i].address.load(std::memory_order_relaxed) == 0) return i;
    }
    if (used == PatchTable::kCapacity) return std::nullopt;
    return used;
}

}  // namespace

std::optional<std::uint64_t> read_word(int memory_fd, std::uint64_t address, std::size_t size_bytes) {
    std::uint64_t value = 0;
    if (::pread(memory_fd, &value, size_bytes, static_cast<off_t>(address)) !=
        static_cast<ssize_t>(size_bytes)) {
        return std::nullopt;
    }
    return value;
}

bool write_word(int memory_fd, std::uint64_t address, std::uint64_t value, std::size_t size_bytes) {
    return ::pwrite(memory_fd, &value, size_bytes, static_cast<off_t>(address)) ==
           static_cast<ssize_t>(size_bytes);
}

std::optional<std::size_t> apply_patch(PatchTable& table, int memory_fd, std::uint64_t address,
                                       std::uint64_t original, std::uint64_t patched, std::size_t size_bytes,
                                       bool is_original) {
    const auto index = free_entry(table);
    if (!index) return std::nullopt;
    PatchTable::Entry& entry = table.entries[*index];
    entry.original.store(original, std::memory_order_relaxed);
    entry.patched.store(patched, std::memory_order_relaxed);
    entry.size_bytes.store(static_cast<std::uint32_t>(size_bytes), std::memory_order_relaxed);
    entry.stack_phase.store(0, std::memory_order_relaxed);
    entry.hits.store(0, std::memory_order_relaxed);
    entry.address.store(address, std::memory_order_release);
    table.used.store(
        std::max(table.used.load(std::memory_order_relaxed), static_cast<std::uint32_t>(*index + 1)),
        std::memory_order_release);
    if (size_bytes == 1) note_page(table, address);
    if ((!is_original && read_word(memory_fd, address, size_bytes) != original) ||
        !write_word(memory_fd, address, patched, size_bytes)) {
        entry.address.store(0, std::memory_order_release);
        return std::nullopt;
    }
    return index;
}

void undo_patch(PatchTable& table, int memory_fd, std::size_t index, bool is_there) {
    PatchTable::Entry& entry = table.entries[index];
    const std::uint64_t address = entry.address.load(std::memory_order_acquire);
    if (address == 0) return;
    const std::size_t size_bytes = entry.size_bytes.load(std::memory_order_relaxed);
    if (is_there ||
        read_word(memory_fd, address, size_bytes) == entry.patched.load(std::memory_order_relaxed)) {
        write_word(memory_fd, address, entry.original.load(std::memory_order_relaxed), size_bytes);
    }
    entry.address.store(0, std::memory_order_release);
}

bool stands_behind_int3(const PatchTable& table, std::uint64_t instruction_pointer,
                        std::uint64_t stack_pointer) {
    const std::uint32_t used =
        std::min<std::uint32_t>(table.used.load(std::memory_order_acquire), PatchTable::kCapacity);
    for (std::uint32_t i = 0; i < used; ++i) {
        const PatchTable::Entry& entry = table.entries[i];
        if (entry.address.load(std::memory_order_acquire) + 1 != instruction_pointer ||
            entry.size_bytes.load(std::memory_order_relaxed) != 1) {
            continue;
        }
        const std::uint32_t phase = entry.stack_phase.load(std::memory_order_relaxed);
        return phase == 0 || phase == stack_pointer % 16 + 1;
    }
    return false;
}

std::size_t undo_all_patches(PatchTable& table, int memory_fd, bool clear) {
    const std::uint32_t used =
        std::min<std::uint32_t>(table.used.load(std::memory_order_acquire), PatchTable::kCapacity);
    std::array<std::pair<std::uint32_t, std::uint32_t>, PatchTable::kCapacity> order;  // hits, index
    std::size_t count = 0;
    for (std::uint32_t i = 0; i < used; ++i) {
        const PatchTable::Entry& entry = table.entries[i];
        if (entry.address.load(std::memory_order_acquire) != 0)
            order[count++] = {entry.hits.load(std::memory_order_relaxed), i};
    }
    std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), std::greater<>());
    std::size_t undone = 0;
    for (std::size_t i = 0; i < count; ++i) {
        PatchTable::Entry& entry = table.entries[order[i].second];
        const std::uint64_t address = entry.address.load(std::memory_order_acquire);
        if (address == 0) continue;
        const std::size_t size_bytes =
            std::min<std::size_t>(entry.size_bytes.load(std::memory_order_relaxed), 8);
        if (read_word(memory_fd, address, size_bytes) == entry.patched.load(std::memory_order_relaxed) &&
            write_word(memory_fd, address, entry.original.load(std::memory_order_relaxed), size_bytes)) {
            ++undone;
        }
        if (clear) entry.address.store(0, std::memory_order_release);
    }
    return undone;
}

}  // namespace memattach::probe
