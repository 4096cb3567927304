#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "memattach/process/memory.h"

namespace memattach::probe {

/// Pages of the target that are read by two processes at a time while a thread is held, and where they are
/// read to. Lies in shared memory; filled with zeros it is empty.
class PageReads {
  public:
    static constexpr std::size_t kPageBytes = 4096;
    static constexpr std::size_t kPoolPages = 4096;

    /// The pages that the contents are read to. The next list begins with the first of them.
    [[nodiscard]] std::span<std::byte> pool() { return pool_; }

    /// Nothing is to be read. Nobody may be reading.
    void clear() { count_.store(0, std::memory_order_relaxed); }
    /// The page is to be read to the pool's page `place`, which is behind the one before. At most kPoolPages.
    void add(std::uint64_t page, std::size_t place);

    /// They are to be read now.
    void begin();
    /// Reads what nobody else has begun to read, as long as the monotonic clock is before `until_ns`.
    /// `on_read(i)`: the list's i-th run has just been read here, or has failed.
    void help(const process::Memory& target, std::uint64_t until_ns = ~std::uint64_t{0},
              const std::function<void(std::size_t)>& on_read = {});
    /// Whether everything has been read, or couldn't be.
    [[nodiscard]] bool is_over() const {
        return read_.load(std::memory_order_acquire) >= count_.load(std::memory_order_relaxed);
    }

    /// A part of the list: pages in a row.
    struct Run {
        std::uint64_t page = 0;
        std::uint32_t place = 0;
        std::uint32_t pages = 0;
        bool failed = false;  ///< not all of it could be read
    };
    [[nodiscard]] std::span<const Run> runs() const {
        return std::span(runs_).first(count_.load(std::memory_order_relaxed));
    }

  private:
    /// So many pages are a run at most, and so many runs are read at a time: there must be something left for
    /// the other one.
    static constexpr std::uint32_t kMostPages = 8;
    static constexpr std::uint32_t kBatch = 8;

    std::atomic<std::uint32_t> count_, next_, read_;  ///< runs
    std::array<Run, kPoolPages> runs_;
    alignas(kPageBytes) std::array<std::byte, kPoolPages * kPageBytes> pool_;
};

}  // namespace memattach::probe
