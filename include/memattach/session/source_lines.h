#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "memattach/base/unique_fd.h"

namespace memattach::session {

/// Reads lines of the target's source files, as the target sees them: below its root directory, relative
/// paths from its working directory. Both are opened at the start, so that lines can be read when it has
/// ended.
///
/// The paths come from the target, and memattach may run with more rights than it: only regular files that
/// the target's own user could read are opened, and symbolic links stay inside its root.
class SourceLines {
  public:
    explicit SourceLines(int pid);

    /// Line `line` (from 1 on) without its newline; empty where it can't be read.
    std::string line(const std::string& path, std::uint32_t line);

  private:
    struct File {
        std::string text;
        std::vector<std::size_t> starts;
    };
    const File& load(const std::string& path);

    base::UniqueFd root_, cwd_;
    uid_t uid_ = 0;
    std::unordered_map<std::string, File> files_;
    std::size_t total_bytes_ = 0;
};

}  // namespace memattach::session
