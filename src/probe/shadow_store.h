#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/shadow.h"

namespace memattach::probe {

/// The pages of a shadow that its program may write to, in memory that the keeper and the shadow share: a
/// file without a name in which each page has its address as its place. To write one back is a memcpy (0.2
/// µs; from process to process it takes 1 to 2 µs), and pages stay when the space is made anew. A page that
/// isn't here is missing in the shadow.
class ShadowStore {
  public:
    ShadowStore();
    ~ShadowStore();
    ShadowStore(const ShadowStore&) = delete;
    ShadowStore& operator=(const ShadowStore&) = delete;

    /// −1 where there can be none (RLIMIT_FSIZE, vm.memfd_noexec = 2 before Linux 6.7, no memory).
    [[nodiscard]] int fd() const { return file_.get(); }
    /// Where a page is, which is there from then on: as it was, or zeros. Null where there is no room left.
    [[nodiscard]] std::byte* at(std::uint64_t page);
    /// Takes a page away, from the shadow too.
    void drop(std::uint64_t page);
    [[nodiscard]] bool is_full() const { return windows_.size() == kMostWindows; }
    /// Takes all away: what at() returned means nothing any more.
    void clear();

  private:
    static constexpr std::uint64_t kPage = ShadowShared::kPageBytes;
    /// What is mapped here at a time, and how many of those there may be.
    static constexpr std::uint64_t kWindow = 256 << 10;
    static constexpr std::size_t kMostWindows = 4096;

    base::UniqueFd file_;
    std::byte* room_ = nullptr;  ///< for all windows
    std::unordered_map<std::uint64_t, std::byte*> windows_;
};

}  // namespace memattach::probe
