#include "command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "values.h"

namespace memattach::cli {
namespace {

constexpr const char* kDescription =
    "Attaches to a running Python process and says which source lines use CPU and memory.\n"
    "Nothing is injected into the process and nothing needs to be prepared in it.";

constexpr const char* kExamples = R"(Examples:
  memattach -p 1234                         until Ctrl-C, then the table
  memattach -p 1234 -d 30s --html out.html  30 seconds, into a file to send around
  memattach -- python app.py                start a program and profile all of it
  memattach -p 1234 -d 10 --json - --quiet  for scripts
  memattach dump -p 1234                    what every thread is doing now
  memattach doctor -p 1234                  what would work here, and why not

Exit codes: 0 done; 2 usage, or the process can't be profiled; 3 the process was lost midway (what
had been gathered was written); 128+n ended by signal n. A started command's own code is passed on.
)";

/// Adapts a parser that throws std::invalid_argument to CLI11, for the command line and the configuration
/// file alike.
template <typename Parse>
auto converting(std::string name, Parse parse) {
    return [name, parse](const std::string& text) {
        try {
            parse(text);
        } catch (const std::invalid_argument& error) {
            throw CLI::ValidationError(name, error.what());
        }
    };
}

/// The help of `memattach` itself; CLI11's own is made for programs that have nothing but options.
class Help final : public CLI::Formatter {
  public:
    std::string make_usage(const CLI::App* /*app*/, std::string /*name*/) const override {
        return "\nUsage:\n"
               "  memattach -p PID [OPTIONS]\n"
               "  memattach [OPTIONS] -- COMMAND...\n"
               "  memattach dump|doctor|report [OPTIONS]\n\n";
    }
};

/// Without the runs of empty lines that CLI11 puts between groups.
std::string tidy(std::string help) {
    for (std::size_t at; (at = help.find("\n\n\n")) != std::string::npos;) help.erase(at, 1);
    return help;
}

/// One line out of whatever CLI11 has to say, which may span several.
std::string one_line(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return base::printable(text, 500);
}

CLI::Option* add_pid(CLI::App& app, std::optional<int>& pid, const std::string& description) {
    return app
        .add_option_function<std::string>(
            "-p,--pid", converting("--pid", [&pid](const std::string& text) { pid = parse_pid(text); }),
            description)
        ->type_name("PID")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

/// An output that may be named or not: `--html` and `--html FILE`.
struct OutputOption {
    const char* name;       ///< "--html"
    const char* extension;  ///< of the default name, and what `-o` is recognised by
    std::string session::Options::*file;
};
constexpr OutputOption kOutputs[] = {
    {"--html", ".html", &session::Options::html},
    {"--speedscope", ".speedscope.json", &session::Options::speedscope},
    {"--json", ".json", &session::Options::json},
    {"--collapsed", ".collapsed", &session::Options::collapsed},
};
constexpr const char* kUnnamed = "\x01";  // an output asked for without a file name

/// The options about what is written where, which profiling and `report` share.
class OutputParser {
  public:
    OutputParser(session::Options& options, std::string& metric, bool& no_color)
        : options_(options), metric_(metric), no_color_(no_color) {}

    void add(CLI::App& app);
    /// Gives each output that was asked for its file's name: its own, --outfile, or `base_name` and its
    /// extension.
    void finish(const std::string& base_name);

  private:
    void apply_outfile();

    session::Options& options_;
    std::string& metric_;
    bool& no_color_;
    std::string outfile_;
};

class ProfileParser {
  public:
    explicit ProfileParser(CLI::App& app) {
        add_target(app);
        add_measure(app);
        add_sampling(app);
        add_rows(app);
        outputs_.add(app);
    }

    ProfileCommand take(std::vector<std::string> command);

  private:
    void add_target(CLI::App& app);
    void add_measure(CLI::App& app);
    void add_sampling(CLI::App& app);
    void add_rows(CLI::App& app);

    ProfileCommand command_;
    OutputParser outputs_{command_.options, command_.metric, command_.no_color};
    bool cpu_ = false;
    bool memory_ = false;
};

void ProfileParser::add_target(CLI::App& app) {
    session::Options& o = command_.options;
    const std::string group = "What to profile";
    add_pid(app, o.pid, "The running process to attach to")->group(group);
    app.add_flag("-s,--subprocesses", o.subprocesses,
                 "Its child processes too, those that appear later as well")
        ->group(group);
    app.add_option_function<std::string>(
           "-d,--duration",
           converting("--duration", [&o](const std::string& text) { o.duration = parse_duration(text); }),
           "How long: 30, 30s, 500ms, 5m. Default: until Ctrl-C or the process's end")
        ->type_name("TIME")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
}

void ProfileParser::add_measure(CLI::App& app) {
    session::Options& o = command_.options;
    const std::string group = "What to measure (default: both)";
    app.add_flag("--cpu", cpu_, "CPU time alone")->group(group);
    app.add_flag("--memory", memory_, "Memory alone")->group(group);
    app.add_flag("-g,--gil", o.gil_only, "Count only samples that hold the GIL")->group(group);
    app.add_flag("-i,--idle", o.idle, "Look at waiting threads too: adds the seconds waited to the table")
        ->group(group);
    app.add_flag("-n,--native", o.native,
                 "C functions in the stacks too: flame graphs, and --profile-all in the table")
        ->group(group);
    app.add_flag("-t,--threads", o.threads, "Split by thread: lists them, and splits flame graphs")
        ->group(group);
}

void ProfileParser::add_sampling(CLI::App& app) {
    session::Options& o = command_.options;
    const std::string group = "How to sample";
    app.add_option_function<std::string>(
           "-r,--rate", converting("--rate", [&o](const std::string& text) { o.rate_hz = parse_rate(text); }),
           "CPU samples a second. Default: 100")
        ->type_name("HZ")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
    app.add_option_function<std::string>(
           "--malloc-threshold",
           converting("--malloc-threshold",
                      [&o](const std::string& text) { o.malloc_threshold_mb = parse_number(text, 0, 1024); }),
           "Sample an allocation about every so many MB. Default: 1")
        ->type_name("MB")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
    app.add_option_function<std::string>(
           "--max-overhead",
           converting("--max-overhead",
                      [&o](const std::string& text) { o.max_overhead_pct = parse_number(text, 0, 100); }),
           "What watching memory may cost the process, percent of its time. Default: 5")
        ->type_name("PCT")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
    app.add_flag("--blocking", o.blocking,
                 "Stop each thread for its sample, where the kernel's counters are refused")
        ->group(group);
}

void ProfileParser::add_rows(CLI::App& app) {
    session::Options& o = command_.options;
    const std::string group = "What to show";
    app.add_option("--profile-only", o.profile_only,
                   "Only rows whose path or function has one of these words")
        ->type_name("WORDS")
        ->delimiter(',')
        ->group(group);
    app.add_option("--profile-exclude", o.profile_exclude, "No rows whose path or function has one of these")
        ->type_name("WORDS")
        ->delimiter(',')
        ->group(group);
    app.add_flag("--profile-all", o.profile_all,
                 "Charge library code itself, not the line of yours that called it")
        ->group(group);
}

void OutputParser::add(CLI::App& app) {
    session::Options& o = options_;
    const std::string group = "Where to (FILE may be - for stdout)";
    app.add_flag("--cli", o.cli, "The table on stdout; the default where no other output is named")
        ->group(group);
    const auto add_file = [&](const char* name, std::string& file, const char* description) {
        app.add_option_function<std::vector<std::string>>(
               name,
               [&file](const std::vector<std::string>& names) {
                   file = names.empty() || names.front().empty() ? kUnnamed : names.front();
               },
               description)
            ->type_name("[FILE]")
            ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
            ->expected(0, 1)
            ->group(group);
    };
    add_file("--html", o.html, "A self-contained page");
    add_file("--json", o.json, "Everything, for scripts (memattach.profile/1)");
    add_file("--speedscope", o.speedscope, "For speedscope.app");
    add_file("--collapsed", o.collapsed, "Collapsed stacks, for flame graphs");
    app.add_option("--metric", metric_,
                   "What collapsed stacks are weighed by: cpu, wait, allocated, live, peak")
        ->type_name("NAME")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
    app.add_option("-o,--outfile", outfile_,
                   "The file of the one output asked for, or chosen by its extension")
        ->type_name("FILE")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
    app.add_flag("--reduced-profile", o.reduced_profile, "A table of functions instead of lines")
        ->group(group);
    app.add_flag("-q,--quiet", o.quiet, "Nothing on stderr but errors")->group(group);
    app.add_flag("--no-color", no_color_, "No colours; NO_COLOR and a pipe do the same")->group(group);
}

void OutputParser::apply_outfile() {
    session::Options& o = options_;
    const std::string shown = base::printable(outfile_, 200);
    const OutputOption* chosen = nullptr;
    for (const OutputOption& output : kOutputs) {
        if (o.*output.file != kUnnamed) continue;
        if (chosen != nullptr) {
            base::throw_error("--outfile {}: {} and {} can't share it; give each its own name", shown,
                              chosen->name, output.name);
        }
        chosen = &output;
    }
    for (const OutputOption& output : kOutputs) {
        if (chosen == nullptr && outfile_.ends_with(output.extension)) chosen = &output;
    }
    if (chosen == nullptr) {
        std::string names;
        for (const OutputOption& output : kOutputs)
            names += fmt::format("{}{}", names.empty() ? "" : ", ", output.name);
        base::throw_error("--outfile {}: which format? add one of {}", shown, names);
    }
    if (!(o.*chosen->file).empty() && o.*chosen->file != kUnnamed) {
        base::throw_error("--outfile {}: {} has a name already", shown, chosen->name);
    }
    o.*chosen->file = outfile_;
}

void OutputParser::finish(const std::string& base_name) {
    session::Options& o = options_;
    if (!outfile_.empty()) apply_outfile();
    std::vector<std::string> on_stdout;
    bool named = false;
    for (const OutputOption& output : kOutputs) {
        std::string& file = o.*output.file;
        if (file == kUnnamed) file = base_name + output.extension;
        named = named || !file.empty();
        if (file == "-") on_stdout.emplace_back(output.name);
    }
    if (!named) o.cli = true;
    if (o.cli) on_stdout.emplace_back("--cli");
    if (on_stdout.size() > 1) {
        base::throw_error("{} and {} both want stdout; give one of them a file", on_stdout[0], on_stdout[1]);
    }
}

ProfileCommand ProfileParser::take(std::vector<std::string> command) {
    session::Options& o = command_.options;
    o.command = std::move(command);
    if (o.pid && !o.command.empty()) base::throw_error("--pid {} or a command after --, not both", *o.pid);
    if (cpu_ || memory_) {
        o.cpu = cpu_;
        o.memory = memory_;
    }
    outputs_.finish(o.pid ? fmt::format("memattach-{}", *o.pid) : "memattach");
    return command_;
}

/// CLI11's complaint about `arguments` in the words of the rest of this program.
std::string complaint(const CLI::ParseError& error, const std::vector<std::string>& arguments,
                      bool has_rest) {
    if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
        // "The following arguments were not expected: app.py python", in an order that depends on the
        // version.
        const std::string text = fmt::format(" {} ", error.what());
        for (const std::string& argument : arguments) {
            if (text.find(" " + argument + " ") == std::string::npos) continue;
            if (argument.starts_with("-"))
                return fmt::format("there is no option {}; see memattach --help", argument);
            if (has_rest) return fmt::format("unexpected argument '{}' before --", argument);
            return fmt::format(
                "unexpected argument '{}'; to start a command put -- in front of it: memattach -- {}",
                argument, argument);
        }
    }
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
        const std::string text = error.what();
        return fmt::format("{} needs a value; see memattach --help", text.substr(0, text.find(':')));
    }
    if (dynamic_cast<const CLI::ConfigError*>(&error) != nullptr ||
        dynamic_cast<const CLI::FileError*>(&error) != nullptr) {
        return fmt::format("the configuration file: {}", error.what());
    }
    return error.what();
}

}  // namespace

Command parse_command_line(const std::vector<std::string>& arguments) {
    const auto dashes = std::find(arguments.begin(), arguments.end(), "--");
    const bool has_rest = dashes != arguments.end();
    const std::vector<std::string> own(arguments.begin(), dashes);
    std::vector<std::string> rest(has_rest ? dashes + 1 : dashes, arguments.end());

    CLI::App app(kDescription, "memattach");
    app.allow_config_extras(CLI::config_extras_mode::error);
    app.get_formatter()->column_width(34);
    app.require_subcommand(0, 1);

    std::optional<int> pid;
    DumpCommand dump;
    CLI::App* dump_app = app.add_subcommand("dump", "Print what every thread of a process is doing now");
    add_pid(*dump_app, pid, "The process");
    dump_app->add_flag("-n,--native", dump.native, "The native frames too; stops each thread once, briefly");
    dump_app->add_flag("--json", dump.json, "As JSON");
    dump_app->add_flag("--no-color", dump.no_color, "No colours");

    DoctorCommand doctor;
    CLI::App* doctor_app = app.add_subcommand("doctor", "Say what would work here, and why not");
    add_pid(*doctor_app, doctor.pid, "For this process");
    doctor_app->add_flag("--json", doctor.json, "As JSON");
    doctor_app->add_flag("--no-color", doctor.no_color, "No colours");

    ReportCommand report;
    OutputParser report_outputs(report.options, report.metric, report.no_color);
    CLI::App* report_app =
        app.add_subcommand("report", "Write the outputs again, from a profile that was written as JSON");
    report_app->add_option("FILE", report.file, "What --json wrote; - is stdin");
    report_outputs.add(*report_app);

    // Only now, for the help of the whole: the commands above would take it over.
    auto formatter = std::make_shared<Help>();
    formatter->column_width(34);
    app.formatter(formatter);
    app.footer(kExamples);
    ProfileParser profile(app);
    app.set_config("--config", "", "Any of these options, as TOML or INI", false)
        ->type_name("FILE")
        ->group("Other");
    app.set_help_flag("-h,--help", "This text")->group("Other");
    app.set_version_flag("-V,--version", version_text(), "Version and how it was built")->group("Other");

    if (own.empty() && !has_rest) {
        base::throw_error("nothing to profile: give --pid PID or -- COMMAND; see memattach --help");
    }
    try {
        app.parse(std::vector<std::string>(own.rbegin(), own.rend()));  // in reverse, as CLI11 wants them
    } catch (const CLI::CallForHelp&) {
        const auto chosen = app.get_subcommands();
        return Text{tidy(chosen.empty() ? app.help() : chosen.front()->help("memattach"))};
    } catch (const CLI::CallForVersion&) {
        return Text{version_text() + "\n"};
    } catch (const CLI::ParseError& error) {
        throw base::Error(one_line(complaint(error, own, has_rest)));
    }
    if (const auto chosen = app.get_subcommands(); !chosen.empty()) {
        const std::string name = chosen.front()->get_name();
        if (has_rest) base::throw_error("memattach {} takes no command", name);
        if (own.front() != name) base::throw_error("the options of memattach {} go behind it", name);
    }
    if (has_rest && rest.empty()) base::throw_error("no command after --");
    if (dump_app->parsed()) {
        if (!pid) base::throw_error("dump which process? give --pid PID");
        dump.pid = *pid;
        return dump;
    }
    if (doctor_app->parsed()) return doctor;
    if (report_app->parsed()) {
        if (report.file.empty()) base::throw_error("report on which file? give one that --json wrote");
        const bool json = report.file.ends_with(".json");
        report_outputs.finish(
            report.file == "-" ? "memattach" : report.file.substr(0, report.file.size() - (json ? 5 : 0)));
        return report;
    }
    return profile.take(std::move(rest));
}

}  // namespace memattach::cli
