#include <cstdint>
#include <vector>

#include "memattach/elf/memory_image.h"
#include "process/fake_memory.h"

/// A module's memory, wholly under the target's control.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    test::FakeMemory memory;
    const base::Address start(0x7f0000000000);
    const auto bytes = std::as_bytes(std::span(data, size));
    memory.map(start, {bytes.begin(), bytes.end()});
    const auto image = elf::MemoryImage::read(memory, start);
    if (image) (void)image->find_symbol("_PyRuntime");
    return 0;
}
