#pragma once

#include <chrono>
#include <string>

namespace memattach::cli {

/// Parse what a user types on the command line or in a configuration file. Each throws std::invalid_argument
/// with a message that names the text and shows what would be right; the caller puts the option's name in
/// front.

/// "30", "30s", "1.5s", "500ms", "5m", "2h". A bare number is seconds. More than 0, at most 30 days.
std::chrono::milliseconds parse_duration(const std::string& text);

/// Samples a second, "100" or "0.5": more than 0, at most 1,000,000.
double parse_rate(const std::string& text);

/// A process id: a whole number above 0.
int parse_pid(const std::string& text);

/// A number from `low` (exclusive) to `high` (inclusive).
double parse_number(const std::string& text, double low, double high);

}  // namespace memattach::cli
