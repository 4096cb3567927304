#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "../../src/python/layout_cache.h"

/// A cache file that somebody else has written: what is accepted says the same when it is written again.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    const auto layout =
        python::LayoutCache::from_text(std::string_view(reinterpret_cast<const char*>(data), size));
    if (layout && !python::LayoutCache::from_text(python::LayoutCache::to_text(*layout))) std::abort();
    return 0;
}
