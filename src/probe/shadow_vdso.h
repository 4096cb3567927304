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
    /// The part of it that read_clocks() changes, and where it is in the target.
    [[nodiscard]] std::span<const std::byte> times() const { return image().subspan(times_offset_); }
    [[nodiscard]] std::uint64_t times_start() const { return start_ + times_offset_; }
    /// The time is `ago_ns` before this moment's; CPU time, which nobody but the kernel could tell, stays as
    /// it was.
    void read_clocks(std::int64_t ago_ns);

  private:
    static constexpr std::size_t kClocks = 16;

    std::uint64_t start_;
    std::vector<std::byte> image_;
    /// kClocks times {seconds, nanoseconds}; the image's end where there is no code.
    std::size_t times_offset_;

    void read_clock(std::size_t clock, std::int64_t ago_ns);
};

}  // namespace memattach::probe
