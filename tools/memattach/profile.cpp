#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <string>

#include "commands.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/proc.h"
#include "memattach/report/layout.h"
#include "memattach/session/session.h"
#include "outputs.h"
#include "target.h"
#include "terminal.h"

namespace memattach::cli {
namespace {

/// What goes to stderr while profiling: one line when it begins, and on a terminal one that counts.
class Progress {
  public:
    explicit Progress(const session::Options& options)
        // A started command has the terminal to itself.
        : options_(options), status_(!options.quiet && options.command.empty()) {}

    void operator()(const session::Progress& progress) {
        if (!begun_) begin();
        std::string text = fmt::format("{:.1f} s", progress.elapsed_s);
        if (options_.duration) {
            text += fmt::format(" of {:g} s", std::chrono::duration<double>(*options_.duration).count());
        }
        if (options_.cpu) text += fmt::format(", {} CPU samples", report::count_text(progress.cpu_samples));
        if (options_.memory)
            text += fmt::format(", {} allocations sampled", report::count_text(progress.allocations));
        status_.show(text);
    }

    void end() { status_.clear(); }

  private:
    void begin() {
        begun_ = true;
        if (options_.quiet) return;
        const std::string what =
            options_.pid ? fmt::format("process {} ({})", *options_.pid,
                                       base::printable(process::command_line(*options_.pid), 100))
                         : base::printable(fmt::format("{}", fmt::join(options_.command, " ")), 100);
        const std::string how_long =
            options_.duration
                ? fmt::format("for {:g} s", std::chrono::duration<double>(*options_.duration).count())
                : std::string(options_.pid ? "until Ctrl-C or its end" : "until its end");
        fmt::print(stderr, "memattach: profiling {} {}\n", what, how_long);
    }

    const session::Options& options_;
    StatusLine status_;
    bool begun_ = false;
};

int code_of_status(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/// Waits for a command that goes on after its profile is written. Ctrl-C reaches it by itself; what is sent
/// to memattach alone is passed on.
int wait_for_command(pid_t pid) {
    static volatile pid_t command;  // for the handler
    command = pid;
    std::signal(SIGINT, SIG_IGN);
    std::signal(SIGQUIT, SIG_IGN);
    for (const int number : {SIGTERM, SIGHUP}) {
        std::signal(number, [](int n) { ::kill(command, n); });
    }
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

}  // namespace

int run_profile(const ProfileCommand& command) {
    session::Options options = command.options;
    options.color = wants_color(command.no_color);
    if (!options.pid && options.command.empty()) {
        options.pid = choose_target();
        if (!options.quiet) {
            fmt::print(stderr, "memattach: taking process {}, the only Python process of yours\n",
                       *options.pid);
        }
    }
    if (options.pid) {
        require_target(*options.pid);
        if (options.memory && options.blocking) {
            base::throw_error("--blocking traces the process, and so does memory accounting: add --cpu");
        }
        if (options.memory) {
            require_untraced(*options.pid, "use --cpu, which traces nothing");
        } else if (options.blocking) {
            require_untraced(*options.pid, "leave out --blocking");
        }
    }
    Outputs outputs(options, command.metric);

    Progress progress(options);
    const session::Outcome outcome = session::run(options, [&](const session::Progress& p) { progress(p); });
    progress.end();

    outputs.write(outcome.profile);
    if (const std::string files = outputs.files_written(); !files.empty() && !options.quiet) {
        fmt::print(stderr, "memattach: wrote {}\n", files);
    }
    if (outcome.child_status) return code_of_status(*outcome.child_status);
    if (outcome.command_pid != 0) return code_of_status(wait_for_command(outcome.command_pid));
    if (outcome.signal != 0) return 128 + outcome.signal;
    return static_cast<int>(outcome.code);
}

}  // namespace memattach::cli
