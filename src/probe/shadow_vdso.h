#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "memattach/process/maps.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

/// Code in the place of the target's vDSO, whose data the kernel shows to nobody else: clock_gettime() that
/// always tells the same time, and int3 for the rest.
class ShadowVdso {
  public:
    /// `mapping`: where the target, whose memory is `target`, has its own.
    ShadowVdso(const process::Memory& target, const process::Mapping& mapping);

    [[nodiscard]] std::uint64_t start() const { return start_; }
    [[nodiscard]] std::uint64_t size_bytes() const { return image_.size(); }
    [[nodiscard]] std::span<const std::byte> image() const { return image_; }
    /// The time is this moment's.
    void read_clocks();

  private:
    static constexpr std::size_t kClocks = 16;

    std::uint64_t start_;
    std::vector<std::byte> image_;
    std::size_t clocks_at_ = 0;  ///< of the clocks' times: kClocks times {seconds, nanoseconds}; 0: no code
};

}  // namespace memattach::probe
