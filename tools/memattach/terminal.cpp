#include "terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "memattach/report/layout.h"

namespace memattach::cli {
namespace {

std::size_t columns(int fd) {
    winsize size{};
    if (::isatty(fd) == 0 || ::ioctl(fd, TIOCGWINSZ, &size) != 0) return 0;
    return size.ws_col;
}

bool can_draw() {
    const char* term = std::getenv("TERM");
    return term != nullptr && std::string_view(term) != "dumb";
}

}  // namespace

std::size_t stdout_columns() {
    return columns(STDOUT_FILENO);
}

bool wants_color(bool no_color_option) {
    const char* no_color = std::getenv("NO_COLOR");
    return !no_color_option && (no_color == nullptr || *no_color == '\0') && ::isatty(STDOUT_FILENO) != 0 &&
           can_draw();
}

StatusLine::StatusLine(bool enabled) : enabled_(enabled && ::isatty(STDERR_FILENO) != 0 && can_draw()) {}

void StatusLine::show(const std::string& text) {
    if (!enabled_) return;
    const std::size_t width = columns(STDERR_FILENO);
    // Never the last column: some terminals go to the next line there.
    fmt::print(stderr, "\r\x1b[K{}", width > 1 ? report::cut_right(text, width - 1) : text);
    std::fflush(stderr);
    shown_ = true;
}

void StatusLine::clear() {
    if (!shown_) return;
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
    shown_ = false;
}

}  // namespace memattach::cli
