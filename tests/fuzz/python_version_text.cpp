#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "../../src/python/version_text.h"

/// The data of a module and the names of files: both the target's own.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const auto& version : {python::find_version_text(text), python::version_in_name(text)})
        if (version && version->major != 2 && version->major != 3) std::abort();
    return 0;
}
