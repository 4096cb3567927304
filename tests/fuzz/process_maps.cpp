#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "memattach/process/maps.h"

/// Any text gives ascending mappings that don't overlap, and each is found by its own addresses.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    const auto maps = process::parse_maps(std::string_view(reinterpret_cast<const char*>(data), size));
    base::Address last;
    for (const process::Mapping& mapping : maps) {
        if (mapping.start < last || mapping.end <= mapping.start) std::abort();
        if (process::find_mapping(maps, mapping.start) != &mapping) std::abort();
        if (process::find_mapping(maps, mapping.end - 1) != &mapping) std::abort();
        last = mapping.end;
    }
    return 0;
}
