#include <fmt/format.h>

#include <cerrno>
#include <cstdio>

#include "commands.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/proc.h"
#include "memattach/report/json.h"
#include "outputs.h"
#include "terminal.h"

namespace memattach::cli {

int run_report(const ReportCommand& command) {
    constexpr std::size_t kMaxBytes = std::size_t{1} << 30;
    const std::string path = command.file == "-" ? "/dev/stdin" : command.file;
    const auto text = process::read_file(path, kMaxBytes);
    if (!text)
        base::throw_error("can't read {}: {}", base::printable(command.file, 300), base::errno_text(errno));
    const profile::Profile profile = report::read_json(*text, base::printable(command.file, 300));

    session::Options options = command.options;
    options.color = wants_color(command.no_color);
    // No source is read: the file may name any path, and whoever made it doesn't decide what of this machine
    // gets into a page.
    Outputs outputs(options, command.metric);
    outputs.write(profile);
    if (const std::string files = outputs.files_written(); !files.empty() && !options.quiet) {
        fmt::print(stderr, "memattach: wrote {}\n", files);
    }
    return 0;
}

}  // namespace memattach::cli
