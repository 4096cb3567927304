#include "memattach/probe/page_reads.h"

#include <algorithm>

#include "memattach/base/clock.h"

namespace memattach::probe {

void PageReads::add(std::uint64_t page, std::size_t place) {
    const std::uint32_t count = count_.load(std::memory_order_relaxed);
    if (count > 0) {
        Run& last = runs_[count - 1];
        if (last.pages < kMostPages && last.page + last.pages * kPageBytes == page) {
            ++last.pages;
            return;
        }
    }
    runs_[count] = {page, static_cast<std::uint32_t>(place), 1, false};
    count_.store(count + 1, std::memory_order_relaxed);
}

void PageReads::begin() {
    next_.store(0, std::memory_order_relaxed);
    read_.store(0, std::memory_order_relaxed);
}

void PageReads::help(const process::Memory& target, std::uint64_t until_ns,
                     const std::function<void(std::size_t)>& on_read) {
    while (base::monotonic_ns() < until_ns) {
        const std::uint32_t all = std::min<std::uint32_t>(count_.load(std::memory_order_relaxed), kPoolPages);
        const std::uint32_t first = next_.fetch_add(kBatch, std::memory_order_relaxed);
        if (first >= all) return;
        const std::uint32_t count = std::min(kBatch, all - first);
        std::array<process::Memory::Piece, kBatch> pieces;
        for (std::uint32_t i = 0; i < count; ++i) {
            Run& run = runs_[first + i];
            run.failed = true;
            const std::size_t place = std::min<std::size_t>(run.place, kPoolPages - 1);
            const std::size_t pages = std::min<std::size_t>({run.pages, kMostPages, kPoolPages - place});
            pieces[i] = {base::Address(run.page),
                         std::span(pool_).subspan(place * kPageBytes, pages * kPageBytes)};
        }
        const std::size_t done = target.read_pieces(std::span(pieces).first(count));
        for (std::size_t i = 0; i < std::min<std::size_t>(done, count); ++i) runs_[first + i].failed = false;
        read_.fetch_add(count, std::memory_order_release);
        for (std::uint32_t i = 0; on_read && i < count; ++i) on_read(first + i);
    }
}

}  // namespace memattach::probe
