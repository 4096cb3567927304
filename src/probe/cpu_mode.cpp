#include "memattach/probe/cpu_mode.h"

#include "memattach/base/clock.h"
#include "memattach/process/proc.h"

namespace memattach::probe {

std::string CodeRegions::module_of(base::Address ip) {
    constexpr std::uint64_t kMapsAgeNs = 100'000'000;
    const process::Mapping* mapping = process::find_mapping(maps_, ip);
    if (mapping == nullptr) {
        const std::uint64_t now = base::monotonic_ns();
        if (maps_read_ns_ == 0 || now - maps_read_ns_ > kMapsAgeNs) {
            maps_read_ns_ = now;
            if (const auto text = process::read_proc(pid_, "maps")) maps_ = process::parse_maps(*text);
            mapping = process::find_mapping(maps_, ip);
        }
    }
    return mapping == nullptr ? std::string() : mapping->path;
}

}  // namespace memattach::probe
