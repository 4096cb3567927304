#include "command_line.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <variant>

#include "memattach/base/error.h"

using namespace memattach;
using namespace memattach::cli;

namespace {

ProfileCommand profile(const std::vector<std::string>& arguments) {
    return std::get<ProfileCommand>(parse_command_line(arguments));
}

/// The one line that these arguments are refused with.
std::string refusal(const std::vector<std::string>& arguments) {
    try {
        (void)parse_command_line(arguments);
    } catch (const base::Error& error) {
        CHECK(error.code() == base::ExitCode::unusable);
        const std::string text = error.what();
        CHECK(text.find('\n') == std::string::npos);
        return text;
    }
    FAIL_CHECK("accepted");
    return {};
}

bool has(const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
    return true;
}

/// A configuration file, removed at the end.
class ConfigFile {
  public:
    explicit ConfigFile(const std::string& text) {
        const int fd = ::mkstemp(path_);
        REQUIRE(fd >= 0);
        ::close(fd);
        std::ofstream(path_) << text;
    }
    ConfigFile(const ConfigFile&) = delete;
    ConfigFile& operator=(const ConfigFile&) = delete;
    ~ConfigFile() { ::unlink(path_); }
    [[nodiscard]] std::string path() const { return path_; }

  private:
    char path_[64] = "/tmp/memattach-unit-XXXXXX";
};

}  // namespace

TEST_CASE("what is measured by default, and alone") {
    auto both = profile({"-p", "12"}).options;
    CHECK(both.pid == 12);
    CHECK(both.cpu);
    CHECK(both.memory);
    CHECK(both.cli);
    CHECK(both.rate_hz == 100);
    CHECK(!both.duration);
    CHECK(profile({"-p", "12", "--cpu"}).options.cpu);
    CHECK(!profile({"-p", "12", "--cpu"}).options.memory);
    CHECK(!profile({"-p", "12", "--memory"}).options.cpu);
    CHECK(profile({"-p", "12", "--memory", "--cpu"}).options.cpu);
    CHECK(profile({"-p", "12", "--memory", "--cpu"}).options.memory);
}

TEST_CASE("values arrive as their option's") {
    const auto o = profile({"--pid=12",
                            "-d",
                            "5m",
                            "-r",
                            "1000",
                            "--malloc-threshold",
                            "0.1",
                            "--max-overhead",
                            "2",
                            "-gint",
                            "-s",
                            "--blocking",
                            "--profile-only",
                            "app,lib",
                            "--profile-only",
                            "x",
                            "--profile-exclude",
                            "test",
                            "--profile-all",
                            "--reduced-profile",
                            "-q"})
                       .options;
    CHECK(o.duration == std::chrono::minutes(5));
    CHECK(o.rate_hz == 1000);
    CHECK(o.malloc_threshold_mb == 0.1);
    CHECK(o.max_overhead_pct == 2);
    CHECK(o.gil_only);
    CHECK(o.idle);
    CHECK(o.native);
    CHECK(o.threads);
    CHECK(o.subprocesses);
    CHECK(o.blocking);
    CHECK(o.profile_only == std::vector<std::string>{"app", "lib", "x"});
    CHECK(o.profile_exclude == std::vector<std::string>{"test"});
    CHECK(o.profile_all);
    CHECK(o.reduced_profile);
    CHECK(o.quiet);
}

TEST_CASE("everything after the first -- is the command") {
    const auto o = profile({"--cpu", "--", "python", "-m", "pytest", "--", "-p", "no:cacheprovider"}).options;
    CHECK(o.command == std::vector<std::string>{"python", "-m", "pytest", "--", "-p", "no:cacheprovider"});
    CHECK(!o.pid);
    // Also where it has the name of a command of ours.
    CHECK(profile({"--", "dump"}).options.command == std::vector<std::string>{"dump"});
    has(refusal({"--"}), "no command after --");
    has(refusal({"-p", "1", "--", "true"}), "not both");
    has(refusal({"dump", "-p", "1", "--", "true"}), "takes no command");
}

TEST_CASE("a command without -- is pointed to it") {
    has(refusal({"python", "app.py"}), "memattach -- python");
    has(refusal({"-d", "3", "python", "app.py"}), "memattach -- python");
}

TEST_CASE("outputs and their names") {
    CHECK(profile({"-p", "12", "--json"}).options.json == "memattach-12.json");
    CHECK(profile({"--json", "--", "python"}).options.json == "memattach.json");
    CHECK(profile({"-p", "12", "--html"}).options.html == "memattach-12.html");
    CHECK(profile({"-p", "12", "-o", "x.html"}).options.html == "x.html");
    CHECK(profile({"--json", "a.json", "-p", "12"}).options.json == "a.json");
    CHECK(profile({"-p", "12", "--json", "-"}).options.json == "-");
    CHECK(profile({"-p", "12", "--json", "-o", "x"}).options.json == "x");
    CHECK(profile({"-p", "12", "-o", "x.json"}).options.json == "x.json");
    CHECK(profile({"-p", "12", "-o", "x.speedscope.json"}).options.speedscope == "x.speedscope.json");
    CHECK(profile({"-p", "12", "-o", "x.collapsed", "--metric", "live"}).options.collapsed == "x.collapsed");
    CHECK(profile({"-p", "12", "-o", "x.collapsed", "--metric", "live"}).metric == "live");

    const auto two = profile({"-p", "12", "--collapsed", "--json", "b.json"}).options;
    CHECK(two.collapsed == "memattach-12.collapsed");
    CHECK(two.json == "b.json");
    CHECK(!two.cli);
    CHECK(profile({"-p", "12", "--json", "--cli"}).options.cli);

    has(refusal({"-p", "12", "--json", "-", "--cli"}), "--json and --cli both want stdout");
    has(refusal({"-p", "12", "--json", "-", "--collapsed", "-"}), "both want stdout");
    has(refusal({"-p", "12", "-o", "x"}), "which format");
    has(refusal({"-p", "12", "-o", "x", "--collapsed", "--json"}), "can't share it");
    has(refusal({"-p", "12", "-o", "x.json", "--json", "y.json"}), "has a name already");
}

TEST_CASE("report reads a file and has the outputs of profiling") {
    const auto report = [](const std::vector<std::string>& arguments) {
        return std::get<ReportCommand>(parse_command_line(arguments));
    };
    CHECK(report({"report", "a.json"}).file == "a.json");
    CHECK(report({"report", "a.json"}).options.cli);
    CHECK(report({"report", "a.json", "--collapsed"}).options.collapsed == "a.collapsed");
    CHECK(report({"report", "-", "--speedscope"}).options.speedscope == "memattach.speedscope.json");
    has(refusal({"report"}), "report on which file");
    has(refusal({"report", "a.json", "-p", "1"}), "there is no option -p");
}

TEST_CASE("what is wrong is said in one line with the text at fault") {
    has(refusal({}), "--pid PID or -- COMMAND");
    has(refusal({"-p", "abc"}), "'abc' is not a process id");
    has(refusal({"-p"}), "--pid needs a value");
    has(refusal({"-p", "1", "-d", "soon"}), "'soon' is not a duration");
    has(refusal({"-p", "1", "-r", "fast"}), "--rate: 'fast' is not a rate");
    has(refusal({"-p", "1", "--max-overhead", "150"}), "'150' is not a number");
    has(refusal({"-p", "1", "--frobnicate"}), "there is no option --frobnicate");
    has(refusal({"-p", "1", "--color\x1b[31m"}), "there is no option");
    has(refusal({"dump"}), "--pid");
    has(refusal({"dump", "-p", "1", "--speedscope"}), "--speedscope");
}

TEST_CASE("dump and doctor") {
    const auto dump = std::get<DumpCommand>(parse_command_line({"dump", "-p", "7", "--json"}));
    CHECK(dump.pid == 7);
    CHECK(dump.json);
    CHECK_FALSE(dump.native);
    CHECK(std::get<DumpCommand>(parse_command_line({"dump", "-p", "7", "-n"})).native);
    has(refusal({"doctor", "-n"}), "-n");
    const auto doctor = std::get<DoctorCommand>(parse_command_line({"doctor"}));
    CHECK(!doctor.pid);
    CHECK(std::get<DoctorCommand>(parse_command_line({"doctor", "-p", "7"})).pid == 7);
}

TEST_CASE("help and version") {
    const auto help = std::get<Text>(parse_command_line({"--help"})).text;
    for (const char* word : {"--pid", "--duration", "--json", "-- COMMAND", "doctor", "Exit codes"})
        has(help, word);
    for (std::size_t at = 0; at < help.size();) {
        const std::size_t end = std::min(help.find('\n', at), help.size());
        INFO(help.substr(at, end - at));
        CHECK(end - at <= 110);
        at = end + 1;
    }
    has(std::get<Text>(parse_command_line({"dump", "--help"})).text, "--json");
    has(std::get<Text>(parse_command_line({"--version"})).text, "memattach 0.");
}

TEST_CASE("a configuration file sets what the command line doesn't") {
    const ConfigFile toml(
        "duration = \"10s\"\nrate = 250\nthreads = true\nprofile-only = [\"app\", \"lib\"]\n");
    const auto o = profile({"-p", "1", "--config", toml.path(), "-r", "99"}).options;
    CHECK(o.duration == std::chrono::seconds(10));
    CHECK(o.rate_hz == 99);
    CHECK(o.threads);
    CHECK(o.profile_only == std::vector<std::string>{"app", "lib"});

    const ConfigFile ini("; a comment\nduration=5m\njson=out.json\n");
    CHECK(profile({"-p", "1", "--config", ini.path()}).options.duration == std::chrono::minutes(5));
    CHECK(profile({"-p", "1", "--config", ini.path()}).options.json == "out.json");

    const ConfigFile unknown("durration = 10\n");
    has(refusal({"-p", "1", "--config", unknown.path()}), "durration");
    const ConfigFile wrong("rate = \"fast\"\n");
    has(refusal({"-p", "1", "--config", wrong.path()}), "'fast' is not a rate");
    has(refusal({"-p", "1", "--config", "/nonexistent.toml"}), "/nonexistent.toml");
}
