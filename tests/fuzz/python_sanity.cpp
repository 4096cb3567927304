#include <cstdint>
#include <cstdlib>
#include <vector>

#include "memattach/python/layout_sources.h"
#include "memattach/python/sanity.h"
#include "process/fake_memory.h"

/// The target's own structures, forged: the first byte chooses the table, the next eight where _PyRuntime is,
/// the rest is what can be read, at an address that short pointers in it can reach.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    if (size < 16) return 0;
    const auto tables = python::built_in_layouts();
    const python::BuiltInLayout& table = tables[data[0] % tables.size()];
    python::Layout layout = table.layout;
    python::apply_version(table.version, layout);
    test::FakeMemory memory;
    const auto bytes = std::as_bytes(std::span(data, size).subspan(2));
    memory.map(base::Address(0x1000), {bytes.begin(), bytes.end()});
    std::string why;
    (void)python::check_layout(memory, base::Address(0x1000U + data[1] * 8U), layout, why);
    if (memory.reads > 25 * 256 * 64 * 64) std::abort();  // tries × interpreters × threads × reads for each
    return 0;
}
