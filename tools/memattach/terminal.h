#pragma once

#include <cstddef>
#include <string>

namespace memattach::cli {

/// Columns of the terminal that stdout is; 0 where it is none (a pipe or a file gets whole lines).
std::size_t stdout_columns();

/// Whether to colour what goes to stdout: it is a terminal that can (TERM isn't "dumb"), NO_COLOR isn't set
/// (https://no-color.org: to anything but the empty string), and --no-color wasn't given.
bool wants_color(bool no_color_option);

/// A line on stderr that is drawn over and over, where stderr is a terminal; elsewhere it does nothing.
class StatusLine {
  public:
    explicit StatusLine(bool enabled);
    StatusLine(const StatusLine&) = delete;
    StatusLine& operator=(const StatusLine&) = delete;
    ~StatusLine() { clear(); }

    void show(const std::string& text);
    void clear();

  private:
    bool enabled_;
    bool shown_ = false;
};

}  // namespace memattach::cli
