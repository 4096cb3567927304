#include "memattach/elf/image.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "corpus.h"
#include "memattach/elf/dwarf_types.h"
#include "memattach/elf/memory_image.h"
#include "memattach/process/proc.h"
#include "process/fake_memory.h"

using namespace memattach;

extern "C" __attribute__((noinline, used)) int memattach_test_symbol() {
    return 42;
}

namespace {

std::vector<process::Mapping> own_executable() {
    auto maps = process::read_maps(::getpid());
    const auto exe = process::read_link("/proc/self/exe");
    std::erase_if(maps, [&](const auto& m) { return m.path != *exe; });
    return maps;
}

elf::Image open_own() {
    auto image = elf::Image::open(base::UniqueFd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC)));
    REQUIRE(image);
    return std::move(*image);
}

}  // namespace

TEST_CASE("this program's file: bias plus value is where the symbol is") {
    const elf::Image image = open_own();
    const auto symbol = image.find_symbol("memattach_test_symbol");
    const auto bias = image.load_bias(own_executable());
    REQUIRE(symbol);
    REQUIRE(bias);
    CHECK(symbol->table == ".symtab");
    CHECK(*bias + symbol->value == reinterpret_cast<std::uint64_t>(&memattach_test_symbol));
    CHECK_FALSE(image.find_symbol("memattach_test_symbo"));
    CHECK(image.find_section(".text"));
    CHECK_FALSE(image.find_section(".PyRuntime"));
}

TEST_CASE("two segments in one page of the file: the bias that most mappings agree with") {
    const auto bytes = test::corpus("elf_image/small_stripped.so");
    const auto image = elf::Image::open(bytes);
    REQUIRE(image);
    // As the loader maps it at 0x10000, with the first page of its data made read-only (RELRO).
    const auto maps = process::parse_maps(
        "10000-11000 r--p 00000000 08:01 5 /x\n"
        "11000-12000 r--p 00000000 08:01 5 /x\n"
        "12000-13000 rw-p 00001000 08:01 5 /x\n");
    CHECK(image->load_bias(maps) == 0x10000);
    CHECK_FALSE(image->load_bias({}));
    CHECK_FALSE(image->load_bias(process::parse_maps("10000-11000 r--p 00005000 08:01 5 /x")));
}

TEST_CASE("symbols of a shared library, read from memory alone") {
    const process::LiveMemory memory(::getpid());
    const auto maps = process::read_maps(::getpid());
    const auto libc = process::find_mapping(maps, base::Address(reinterpret_cast<std::uint64_t>(&::getpid)));
    REQUIRE(libc != nullptr);
    const auto start =
        std::find_if(maps.begin(), maps.end(), [&](const auto& m) { return m.same_file(*libc); });
    const auto image = elf::MemoryImage::read(memory, start->start);
    REQUIRE(image);
    CHECK(image->find_symbol("getpid") == base::Address(reinterpret_cast<std::uint64_t>(&::getpid)));
    CHECK_FALSE(image->find_symbol("getpi"));
    CHECK_FALSE(image->find_symbol("no_such_function"));

    const auto file = elf::Image::open(base::UniqueFd(::open(libc->path.c_str(), O_RDONLY | O_CLOEXEC)));
    REQUIRE(file);
    CHECK(image->build_id() == file->build_id());
    auto of_libc = maps;
    std::erase_if(of_libc, [&](const auto& m) { return !m.same_file(*libc); });
    CHECK(image->bias() == file->load_bias(of_libc));
}

TEST_CASE("types, members and enumerators of a small library") {
    const auto bytes = test::corpus("elf_image/small_with_dwarf.so");
    const auto image = elf::Image::open(bytes);
    REQUIRE(image);
    CHECK(image->build_id().size() == 40);
    const elf::DwarfTypes types(*image, {"_ts", "PyCodeObject"}, {"_frameowner", "missing"}, {"probe.c"});
    CHECK(types.has_debug_info());
    CHECK(types.size_of("PyCodeObject") == 24);  // an anonymous structure behind a typedef
    CHECK(types.offset_of("PyCodeObject", "co_filename") == 16);
    CHECK(types.offset_of("_ts", "prev") == 0);
    CHECK(types.offset_of("_ts", "next") == 8);
    CHECK(types.offset_of("_ts", "nested.member") == 24);  // through volatile
    CHECK(types.offset_of("_ts", "x") == 32);              // in an anonymous union
    CHECK(types.offset_of("_ts", "z") == 36);              // in an anonymous structure in it
    CHECK(types.offset_of("_ts", "code.co_filename") == 56);
    CHECK(types.enumerator("_frameowner", "FRAME_OWNED_BY_GENERATOR") == 1);
    CHECK_FALSE(types.enumerator("_frameowner", "nothing"));
    CHECK_FALSE(types.offset_of("_ts", "nothing"));
    CHECK_FALSE(types.offset_of("_ts", "next.nothing"));  // a pointer has no members
    CHECK_FALSE(types.size_of("missing"));
}

TEST_CASE("types are found in units that nobody named") {
    const auto bytes = test::corpus("elf_image/small_with_dwarf.so");
    const auto image = elf::Image::open(bytes);
    const elf::DwarfTypes types(*image, {"_ts"}, {}, {"other.c"});
    CHECK(types.size_of("_ts"));
}

TEST_CASE("a stripped library has a dynamic symbol and no types") {
    const auto bytes = test::corpus("elf_image/small_stripped.so");
    const auto image = elf::Image::open(bytes);
    REQUIRE(image);
    CHECK(image->find_symbol("_PyRuntime")->table == ".dynsym");
    CHECK_FALSE(elf::DwarfTypes(*image, {"_ts"}, {}, {}).has_debug_info());
}

TEST_CASE("truncated at every byte: no crash, and no symbol beyond the end") {
    const auto bytes = test::corpus("elf_image/small_with_dwarf.so");
    for (std::size_t size = 0; size < bytes.size(); size += 7) {
        const auto image = elf::Image::open(std::span(bytes).first(size));
        if (!image) continue;
        (void)image->find_symbol("_PyRuntime");
        (void)image->find_section(".text");
        (void)elf::DwarfTypes(*image, {"_ts"}, {}, {}).offset_of("_ts", "next");
    }
}

TEST_CASE("a module in memory whose pages end early") {
    const auto bytes = test::corpus("elf_image/small_stripped.so");
    for (std::size_t size = 0; size < bytes.size(); size += 13) {
        test::FakeMemory memory;
        memory.map(base::Address(0x10000),
                   {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)});
        if (const auto image = elf::MemoryImage::read(memory, base::Address(0x10000)))
            (void)image->find_symbol("_PyRuntime");
    }
}

TEST_CASE("what isn't an ELF file of this machine") {
    CHECK_FALSE(elf::Image::open(base::UniqueFd()));
    CHECK_FALSE(elf::Image::open(base::UniqueFd(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC))));
    CHECK_FALSE(elf::Image::open(std::span<const std::byte>()));
    auto bytes = test::corpus("elf_image/small_stripped.so");
    bytes[4] = std::byte{1};  // ELFCLASS32
    CHECK_FALSE(elf::Image::open(bytes));
    bytes = test::corpus("elf_image/small_stripped.so");
    bytes[18] = std::byte{183};  // EM_AARCH64
    CHECK_FALSE(elf::Image::open(bytes));
}
