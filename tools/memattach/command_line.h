#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "memattach/session/options.h"

namespace memattach::cli {

/// `memattach …`, the default: profile.
struct ProfileCommand {
    session::Options options;
    std::string metric;  ///< what --collapsed weighs stacks by; empty: the first that there is
    bool no_color = false;
};

/// `memattach report FILE`: the outputs again, from a profile that was written as JSON.
struct ReportCommand {
    std::string file;          ///< "-": stdin
    session::Options options;  ///< of these, the outputs
    std::string metric;
    bool no_color = false;
};

/// `memattach dump -p PID`
struct DumpCommand {
    int pid = 0;
    bool native = false;  ///< the native frames too, for which each thread is stopped for a moment
    bool json = false;
    bool no_color = false;
};

/// `memattach doctor [-p PID]`
struct DoctorCommand {
    std::optional<int> pid;
    bool json = false;
    bool no_color = false;
};

/// --help, --version: what to print on stdout; nothing more is to be done.
struct Text {
    std::string text;
};

using Command = std::variant<ProfileCommand, DumpCommand, DoctorCommand, ReportCommand, Text>;

/// Parses the arguments (without the program's name). What comes after the first "--" is the command to
/// profile and is not looked at. Throws base::Error with one line for whatever is wrong with them.
Command parse_command_line(const std::vector<std::string>& arguments);

/// What `--version` prints: the version and how this binary was built.
std::string version_text();

}  // namespace memattach::cli
