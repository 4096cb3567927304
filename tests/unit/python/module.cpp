#include "../../../src/python/module.h"

#include <doctest/doctest.h>

using namespace memattach;

TEST_CASE("the executable first, then what is called libpython, then the rest; .bss belongs to its module") {
    const auto maps = process::parse_maps(
        "1000-2000 r-xp 0 08:01 1 /usr/lib/libc.so.6\n"
        "2000-3000 rw-p 1000 08:01 1 /usr/lib/libc.so.6\n"
        "5000-6000 r--p 0 08:01 2 /opt/lib/libpython3.8.so.1.0\n"
        "6000-7000 r-xp 1000 08:01 2 /opt/lib/libpython3.8.so.1.0\n"
        "7000-8000 rw-p 2000 08:01 2 /opt/lib/libpython3.8.so.1.0\n"
        "8000-9000 rw-p 0 00:00 0 \n"
        "9000-a000 rw-p 0 00:00 0 \n"
        "b000-c000 r--p 0 08:01 3 /usr/share/locale/x\n"  // no code
        "d000-e000 r-xp 0 08:01 4 /srv/app\n"
        "e000-f000 rw-p 1000 08:01 4 /srv/app\n"
        "f000-10000 rw-p 0 00:00 0 [heap]\n"
        "20000-21000 r-xp 0 00:00 0 [vdso]\n");
    const auto modules = python::candidate_modules(maps, "/srv/app");
    REQUIRE(modules.size() == 3);
    CHECK(modules[0].path == "/srv/app");
    CHECK(modules[0].data.size() == 2);  // a small .bss can be part of [heap]'s first mapping
    CHECK(modules[1].base_name() == "libpython3.8.so.1.0");
    CHECK(modules[1].mappings.size() == 3);
    REQUIRE(modules[1].data.size() == 2);
    CHECK(modules[1].data[1].start.value() == 0x8000);
    CHECK(modules[2].path == "/usr/lib/libc.so.6");
    CHECK(modules[2].data.size() == 1);  // nothing anonymous follows it
}

TEST_CASE("files of one name are told apart by inode, and a file of two names is one") {
    const auto modules = python::candidate_modules(process::parse_maps("1000-2000 r-xp 0 08:01 1 /a\n"
                                                                       "2000-3000 r-xp 0 08:01 2 /a\n"
                                                                       "3000-4000 r-xp 0 08:02 1 /a\n"
                                                                       "4000-5000 rw-p 0 08:01 1 /b\n"),
                                                   "/x");
    REQUIRE(modules.size() == 3);
    CHECK(modules[0].mappings.size() == 2);
}

TEST_CASE("a hundred thousand mapped files are bounded") {
    std::string text;
    for (int i = 1; i <= 100'000; ++i)
        text += std::to_string(i) + "000-" + std::to_string(i) + "001 r-xp 0 08:01 " + std::to_string(i) +
                " /f\n";
    CHECK(python::candidate_modules(process::parse_maps(text), "/x").size() == 4096);
}
