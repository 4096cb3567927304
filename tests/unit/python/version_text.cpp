#include "../../../src/python/version_text.h"

#include <doctest/doctest.h>

using namespace memattach;
using python::find_version_text;
using python::version_in_name;

namespace {
std::optional<python::Version> in_buffer(const std::string& text) {
    using namespace std::string_literals;
    return find_version_text("junk 1.2.3\0\0"s + text + "\0more"s);
}
}  // namespace

TEST_CASE("the text of Py_GetVersion in the middle of a .bss") {
    CHECK(in_buffer("3.8.18 (default, May  9 2026, 07:32:38) [GCC 12.2.0]")->hex == 0x030812f0);
    CHECK(in_buffer("3.10.13 (main, …)")->minor == 10);
    CHECK(in_buffer("2.7.18 (default)")->major == 2);
    CHECK(in_buffer("3.14.0a1+ (heads/main:abc)")->hex == 0x030e00a1);
    CHECK(in_buffer("3.13.0rc2 experimental free-threading build (main)")->hex == 0x030d00c2);
    CHECK(in_buffer("3.14.1 free-threading build (main)")->micro == 1);
}

TEST_CASE("what only looks like it") {
    CHECK_FALSE(in_buffer("3.8.18"));
    CHECK_FALSE(in_buffer("3.8 (x)"));
    CHECK_FALSE(in_buffer("x3.8.18 (default)"));
    CHECK_FALSE(in_buffer("4.8.18 (default)"));
    CHECK_FALSE(in_buffer("3.9999.1 (default)"));
    CHECK_FALSE(in_buffer("3.8.1q (default)"));
    CHECK_FALSE(find_version_text(""));
    CHECK_FALSE(find_version_text("."));
    CHECK_FALSE(find_version_text("3."));
}

TEST_CASE("versions in names") {
    CHECK(version_in_name("libpython3.8.so.1.0")->minor == 8);
    CHECK(version_in_name("libpython3.6m.so.1.0")->minor == 6);
    CHECK(version_in_name("python2.7")->major == 2);
    CHECK(version_in_name("python3.14t")->minor == 14);
    CHECK_FALSE(version_in_name("python3"));
    CHECK_FALSE(version_in_name("libpython4.so"));
    CHECK_FALSE(version_in_name("bash"));
    CHECK_FALSE(version_in_name(""));
}
