#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "command_line.h"
#include "commands.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "output_file.h"

namespace {

using namespace memattach;

/// A descriptor 0, 1 or 2 that the caller closed is filled, so that no file of ours ends up there. Read-only:
/// what is written to it still fails with EBADF, as it would have.
void fill_standard_descriptors() {
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (::fcntl(fd, F_GETFD) < 0) (void)!::open("/dev/null", O_RDONLY);
    }
}

int fail(const std::string& message, base::ExitCode code) {
    fmt::print(stderr, "memattach: {}\n", message);
    return static_cast<int>(code);
}

int run(const std::vector<std::string>& arguments) {
    const cli::Command command = cli::parse_command_line(arguments);
    if (const auto* text = std::get_if<cli::Text>(&command)) {
        cli::OutputFile("-").write(text->text);
        return 0;
    }
    if (const auto* profile = std::get_if<cli::ProfileCommand>(&command)) return cli::run_profile(*profile);
    if (const auto* dump = std::get_if<cli::DumpCommand>(&command)) return cli::run_dump(*dump);
    if (const auto* report = std::get_if<cli::ReportCommand>(&command)) return cli::run_report(*report);
    return cli::run_doctor(std::get<cli::DoctorCommand>(command));
}

}  // namespace

int main(int argc, char** argv) {
    fill_standard_descriptors();
    // A reader that goes away must not end memattach while it has something to undo: writes fail with EPIPE
    // instead.
    std::signal(SIGPIPE, SIG_IGN);
    try {
        return run({argv + (argc > 0 ? 1 : 0), argv + argc});
    } catch (const base::Error& error) {
        return fail(error.what(), error.code());
    } catch (const cli::PipeClosed&) {
        return 128 + SIGPIPE;
    } catch (const std::bad_alloc&) {
        return fail("out of memory", base::ExitCode::unusable);
    } catch (const std::exception& error) {
        return fail(fmt::format("internal error: {}; please report it", base::printable(error.what(), 500)),
                    base::ExitCode::unusable);
    }
}
