#pragma once

#include <string>

namespace memattach::cli {

/// Throws base::Error in one line where `pid` can't be looked into: there is no such process, it is a thread,
/// a kernel thread or a zombie, or a permission is missing.
void require_target(int pid);

/// Throws base::Error where somebody traces a thread of `pid` already. Asked only where memattach is going to
/// stop threads: the kernel allows one tracer, and reading needs none.
void require_untraced(int pid, const std::string& alternative);

/// The process to profile where the user named none: the only CPython process of the user. Throws base::Error
/// otherwise, with the list of candidates, a line each, where there are several.
int choose_target();

}  // namespace memattach::cli
