#include "values.h"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

using namespace memattach::cli;
using std::chrono::milliseconds;

TEST_CASE("durations as people write them") {
    CHECK(parse_duration("30") == milliseconds(30'000));
    CHECK(parse_duration("30s") == milliseconds(30'000));
    CHECK(parse_duration("1.5s") == milliseconds(1'500));
    CHECK(parse_duration("500ms") == milliseconds(500));
    CHECK(parse_duration("5m") == milliseconds(300'000));
    CHECK(parse_duration("2h") == milliseconds(7'200'000));
    CHECK(parse_duration("0.25") == milliseconds(250));
}

TEST_CASE("what is no duration is refused, whatever it is") {
    for (const char* text : {"",
                             "s",
                             "ms",
                             "0",
                             "0s",
                             "0.0001ms",
                             "-5",
                             "-5s",
                             "5x",
                             "5 s",
                             "1e3",
                             "inf",
                             "nan",
                             "0x10",
                             "1..5",
                             ".",
                             "31d",
                             "721h",
                             "9999999999999999999999",
                             "5s5",
                             "\x1b[31m"}) {
        INFO(text);
        CHECK_THROWS_AS((void)parse_duration(text), std::invalid_argument);
    }
}

TEST_CASE("a refused value is shown without its control characters") {
    try {
        (void)parse_duration("\x1b[2J");
        FAIL("accepted");
    } catch (const std::invalid_argument& error) {
        CHECK(std::string(error.what()).find('\x1b') == std::string::npos);
        CHECK(std::string(error.what()).find("30s") != std::string::npos);
    }
}

TEST_CASE("rates") {
    CHECK(parse_rate("100") == 100);
    CHECK(parse_rate("0.5") == 0.5);
    CHECK(parse_rate("1000000") == 1e6);
    for (const char* text : {"", "0", "-1", "1000001", "abc", "1e3", "nan", "inf", "100Hz"}) {
        INFO(text);
        CHECK_THROWS_AS((void)parse_rate(text), std::invalid_argument);
    }
}

TEST_CASE("process ids") {
    CHECK(parse_pid("1") == 1);
    CHECK(parse_pid("4194304") == 4194304);
    for (const char* text : {"", "0", "-1", "+1", "1.5", "abc", "12x", "99999999999", " 1"}) {
        INFO(text);
        CHECK_THROWS_AS((void)parse_pid(text), std::invalid_argument);
    }
}

TEST_CASE("numbers within bounds") {
    CHECK(parse_number("0.1", 0, 100) == 0.1);
    CHECK(parse_number("100", 0, 100) == 100);
    CHECK_THROWS_AS((void)parse_number("0", 0, 100), std::invalid_argument);
    CHECK_THROWS_AS((void)parse_number("100.1", 0, 100), std::invalid_argument);
    CHECK_THROWS_AS((void)parse_number("five", 0, 100), std::invalid_argument);
}
