#include <cstdint>

#include "memattach/elf/dwarf_types.h"
#include "memattach/elf/image.h"

/// The entry to a file of the target: headers, notes, symbols, sections, and from there the DWARF.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    const auto image = elf::Image::open(std::as_bytes(std::span(data, size)));
    if (!image) return 0;
    (void)image->find_symbol("_PyRuntime");
    (void)image->find_section(".PyRuntime");
    process::Mapping mapping;
    mapping.end = base::Address(4096);
    (void)image->load_bias(std::span(&mapping, 1));
    const elf::DwarfTypes types(*image, {"_ts", "PyCodeObject"}, {"_frameowner"}, {"probe.c"});
    (void)types.size_of("_ts");
    (void)types.offset_of("_ts", "next");
    (void)types.offset_of("_ts", "nested.member");
    (void)types.enumerator("_frameowner", "FRAME_OWNED_BY_THREAD");
    return 0;
}
