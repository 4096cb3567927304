#include <cstdint>
#include <cstdlib>

#include "memattach/python/layout_sources.h"

/// Whatever _PyRuntime holds: a layout that is accepted is one whose offsets stay within their structures.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    std::string why;
    const auto found = python::parse_debug_offsets(std::as_bytes(std::span(data, size)), why);
    if (!found) {
        if (why.empty()) std::abort();
        return 0;
    }
    const python::Layout& l = found->layout;
    if (l.frame.code >= l.frame.size || l.code.filename >= l.code.size || l.thread.next >= l.thread.size)
        std::abort();
    return 0;
}
