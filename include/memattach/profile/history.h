#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace memattach::profile {

/// The session's time in at most 48 slots of equal width, which doubles (and pairs of slots become one)
/// whenever the session outgrows them: memory stays bounded however long it runs.
class TimeSlots {
  public:
    static constexpr std::size_t kSlots = 48;
    using Values = std::array<float, kSlots>;

    explicit TimeSlots(double width_ns = 50e6) : width_ns_(width_ns) {}

    [[nodiscard]] double width_ns() const { return width_ns_; }
    /// How often the width has to double before `t_ns` fits in.
    [[nodiscard]] unsigned doublings_for(double t_ns) const;
    void grow(unsigned doublings);
    [[nodiscard]] std::size_t slot_of(double t_ns) const;

    /// Adds `amount` × ns spent in each slot.
    void add_time(Values& values, double from_ns, double to_ns, double amount) const;
    static void halve(Values& values);

  private:
    double width_ns_;
};

}  // namespace memattach::profile
