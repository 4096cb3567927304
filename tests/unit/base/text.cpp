#include "memattach/base/text.h"

#include <doctest/doctest.h>

#include <string>

using memattach::base::printable;
using memattach::base::valid_utf8;

TEST_CASE("printable leaves ordinary text alone, in any script") {
    CHECK(printable("résumé 履歴書 🐍.py") == "résumé 履歴書 🐍.py");
}

TEST_CASE("printable disarms terminal escapes, newlines and bidirectional overrides") {
    CHECK(printable("\x1b[2Jx\n\x7f") == "\\x1b[2Jx\\x0a\\x7f");
    CHECK(printable("\xC2\x9B"
                    "31m") == "\\x9b31m");
    CHECK(printable("a\u202Eb") == "a\\u202eb");
}

TEST_CASE("printable shows bytes that are not UTF-8") {
    CHECK(printable("\xFF") == "\\xff");
    CHECK(printable("\xC0\xAF") == "\\xc0\\xaf");           // overlong
    CHECK(printable("\xED\xA0\x80") == "\\xed\\xa0\\x80");  // surrogate
    CHECK(printable("\xE2\x82") == "\\xe2\\x82");           // cut short
}

TEST_CASE("printable cuts at a character's boundary and says so") {
    CHECK(printable("äöü", 4) == "äö…");
    CHECK(printable(std::string(1'000'000, 'x'), 10) == "xxxxxxxxxx…");
}

TEST_CASE("valid_utf8 replaces what isn't") {
    CHECK(valid_utf8("a\xFF\x62") == "a\xEF\xBF\xBD\x62");
}
