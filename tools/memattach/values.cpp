#include "values.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "memattach/base/text.h"

namespace memattach::cli {
namespace {

/// The whole of `text` as a plain decimal number; no sign, no exponent, no "inf".
std::optional<double> decimal(std::string_view text) {
    if (text.empty() || text.find_first_not_of("0123456789.") != std::string_view::npos) return std::nullopt;
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return value;
}

std::string quoted(const std::string& text) {
    return "'" + base::printable(text, 80) + "'";
}

}  // namespace

std::chrono::milliseconds parse_duration(const std::string& text) {
    struct Unit {
        std::string_view suffix;
        double milliseconds;
    };
    // "ms" before "s" and "m": the first suffix that fits is taken.
    constexpr Unit kUnits[] = {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}, {"", 1e3}};
    constexpr double kLongest = 30 * 24 * 3600e3;
    const std::string_view all = text;
    for (const Unit& unit : kUnits) {
        if (!all.ends_with(unit.suffix)) continue;
        const auto number = decimal(all.substr(0, all.size() - unit.suffix.size()));
        if (!number) break;
        const double milliseconds = *number * unit.milliseconds;
        if (milliseconds < 1) throw std::invalid_argument(quoted(text) + " is too short: 1ms is the least");
        if (milliseconds > kLongest)
            throw std::invalid_argument(quoted(text) + " is too long: 30 days are the most");
        return std::chrono::milliseconds(std::llround(milliseconds));
    }
    throw std::invalid_argument(quoted(text) + " is not a duration: write 30, 30s, 500ms, 5m or 2h");
}

double parse_rate(const std::string& text) {
    constexpr double kHighest = 1e6;
    const auto rate = decimal(text);
    if (!rate)
        throw std::invalid_argument(quoted(text) + " is not a rate: write samples a second, such as 100");
    if (*rate <= 0)
        throw std::invalid_argument(quoted(text) + " is too low: it must be more than 0 samples a second");
    if (*rate > kHighest)
        throw std::invalid_argument(quoted(text) + " is too high: 1000000 a second are the most");
    return *rate;
}

int parse_pid(const std::string& text) {
    int pid = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), pid);
    if (error != std::errc{} || end != text.data() + text.size() || pid <= 0) {
        throw std::invalid_argument(quoted(text) + " is not a process id");
    }
    return pid;
}

double parse_number(const std::string& text, double low, double high) {
    const auto number = decimal(text);
    if (!number || *number <= low || *number > high) {
        throw std::invalid_argument(
            fmt::format("{} is not a number above {} and at most {}", quoted(text), low, high));
    }
    return *number;
}

}  // namespace memattach::cli
