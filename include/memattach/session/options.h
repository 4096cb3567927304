#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace memattach::session {

/// What the command line (or the configuration file) asks for.
struct Options {
    std::optional<int> pid;
    std::vector<std::string> command;  ///< after `--`
    std::optional<std::chrono::milliseconds> duration;
    double rate_hz = 100;
    bool cpu = true;
    bool memory = true;
    double malloc_threshold_mb = 1;
    double max_overhead_pct = 5;
    std::string engine = "auto";  ///< auto, ptrace, uprobe
    bool subprocesses = false;
    bool threads = false;
    bool native = false;
    bool gil_only = false;
    bool idle = false;
    bool blocking = false;
    bool profile_all = false;
    bool reduced_profile = false;
    std::vector<std::string> profile_only;
    std::vector<std::string> profile_exclude;

    bool cli = false;
    std::string html, json, collapsed, speedscope;  ///< file names; "-" is stdout; empty: not asked for
    bool quiet = false;
    bool color = false;  ///< decided by main: a terminal, no NO_COLOR, no --no-color
};

}  // namespace memattach::session
