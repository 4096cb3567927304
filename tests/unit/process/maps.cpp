#include "memattach/process/maps.h"

#include <doctest/doctest.h>

using namespace memattach;
using process::parse_maps;

TEST_CASE("a line of maps in all its parts") {
    const auto maps = parse_maps("7f00a000-7f00c000 r-xp 0001f000 fd:1a 1234 /usr/lib/a b.so\n");
    REQUIRE(maps.size() == 1);
    const process::Mapping& m = maps[0];
    CHECK(m.start.value() == 0x7f00a000);
    CHECK(m.size_bytes() == 0x2000);
    CHECK(m.file_offset == 0x1f000);
    CHECK(m.device_major == 0xfd);
    CHECK(m.device_minor == 0x1a);
    CHECK(m.inode == 1234);
    CHECK(m.readable);
    CHECK_FALSE(m.writable);
    CHECK(m.executable);
    CHECK_FALSE(m.shared);
    CHECK_FALSE(m.deleted);
    CHECK(m.path == "/usr/lib/a b.so");
}

TEST_CASE("deleted files, names with a newline, anonymous memory") {
    const auto maps = parse_maps(
        "1000-2000 rw-s 0 00:05 7 /memfd:x (deleted)\n"
        "2000-3000 rw-p 0 00:00 0 \n"
        "3000-4000 r--p 0 08:01 9 /a\\012b\n"
        "4000-5000 rw-p 0 00:00 0 [anon:x (deleted)]");
    REQUIRE(maps.size() == 4);
    CHECK(maps[0].deleted);
    CHECK(maps[0].path == "/memfd:x");
    CHECK(maps[1].path.empty());
    CHECK(maps[2].path == "/a\nb");
    CHECK_FALSE(maps[3].deleted);  // of no file: the words are part of a name that the target chose
    CHECK(maps[3].path == "[anon:x (deleted)]");
}

TEST_CASE("lines that make no sense are left out, the others are kept") {
    const auto maps = parse_maps(
        "1000-2000 rwxp 0 0:0 0\n"
        "zzz\n"
        "3000-3000 rwxp 0 0:0 0\n"            // empty
        "5000-4000 rwxp 0 0:0 0\n"            // backwards
        "1800-2800 rwxp 0 0:0 0\n"            // overlaps
        "10000000000000000-2 rwxp 0 0:0 0\n"  // more than 64 bits
        "6000-7000 rw?p 0 0:0 0\n"
        "8000-9000 rw-p 0 0:0\n"
        "a000-b000 rw-p 0 0:0 0");
    REQUIRE(maps.size() == 2);
    CHECK(maps[1].start.value() == 0xa000);
}

TEST_CASE("at most as many mappings as asked for") {
    CHECK(parse_maps("1-2 r--p 0 0:0 0\n2-3 r--p 0 0:0 0\n3-4 r--p 0 0:0 0\n", 2).size() == 2);
}

TEST_CASE("find_mapping") {
    const auto maps = parse_maps("1000-2000 r--p 0 0:0 0\n3000-4000 r--p 0 0:0 0\n");
    CHECK(process::find_mapping(maps, base::Address(0xfff)) == nullptr);
    CHECK(process::find_mapping(maps, base::Address(0x1000)) == maps.data());
    CHECK(process::find_mapping(maps, base::Address(0x1fff)) == maps.data());
    CHECK(process::find_mapping(maps, base::Address(0x2000)) == nullptr);
    CHECK(process::find_mapping(maps, base::Address(0x3abc)) == &maps[1]);
    CHECK(process::find_mapping(maps, base::Address(0x4000)) == nullptr);
    CHECK(process::find_mapping({}, base::Address(1)) == nullptr);
}
