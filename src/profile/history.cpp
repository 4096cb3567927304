#include "memattach/profile/history.h"

#include <algorithm>

namespace memattach::profile {

unsigned TimeSlots::doublings_for(double t_ns) const {
    unsigned doublings = 0;
    for (double width = width_ns_; t_ns >= width * kSlots && doublings < 64; width *= 2) ++doublings;
    return doublings;
}

void TimeSlots::grow(unsigned doublings) {
    for (; doublings > 0; --doublings) width_ns_ *= 2;
}

std::size_t TimeSlots::slot_of(double t_ns) const {
    if (!(t_ns > 0)) return 0;
    return std::min(kSlots - 1, static_cast<std::size_t>(t_ns / width_ns_));
}

void TimeSlots::add_time(Values& values, double from_ns, double to_ns, double amount) const {
    if (amount == 0) return;
    for (std::size_t slot = slot_of(from_ns); slot < kSlots && from_ns < to_ns; ++slot) {
        const double end =
            slot + 1 < kSlots ? std::min(to_ns, width_ns_ * static_cast<double>(slot + 1)) : to_ns;
        if (end > from_ns) values[slot] += static_cast<float>(amount * (end - from_ns));
        from_ns = std::max(from_ns, end);
    }
}

void TimeSlots::halve(Values& values) {
    for (std::size_t i = 0; i < kSlots; ++i) {
        values[i] = 2 * i + 1 < kSlots ? values[2 * i] + values[2 * i + 1] : 0;
    }
}

}  // namespace memattach::profile
