#pragma once

#include <string>
#include <string_view>

#include "memattach/base/unique_fd.h"

namespace memattach::cli {

/// A file that memattach is going to write. It is opened before the profiling begins, so that one that can't
/// be written is found out then, and gets its name only once it is whole:
///
///     OutputFile file("out.html");        // creates .out.html.memattach-XXXXXX beside it; throws
///     base::Error … profile … file.write(text);                   // throws base::Error that names the file
///     file.commit();                      // out.html is there now, whole; without commit() nothing is left
///
/// "-" is stdout. A pipe, a terminal or another device is opened and written as it is. A symbolic link is
/// followed only where nobody else could have put it there (not in a directory such as /tmp): memattach often
/// runs as root.
class OutputFile {
  public:
    explicit OutputFile(std::string path);
    OutputFile(OutputFile&& other) noexcept;
    OutputFile& operator=(OutputFile&&) = delete;
    ~OutputFile();

    void write(std::string_view text);
    void commit();

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] bool is_stdout() const { return path_ == "-"; }
    /// False for stdout and for devices.
    [[nodiscard]] bool is_new_file() const { return !name_.empty(); }

  private:
    std::string path_;
    base::UniqueFd directory_;
    base::UniqueFd file_;
    std::string name_;       ///< in directory_
    std::string temporary_;  ///< in directory_; empty: nothing to rename
};

/// Thrown where the reader of a pipe has gone (EPIPE): not an error to report; the program ends as SIGPIPE
/// would have ended it.
struct PipeClosed {};

}  // namespace memattach::cli
