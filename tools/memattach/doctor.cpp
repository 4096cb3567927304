#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "commands.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/probe/perf_event.h"
#include "memattach/process/memory.h"
#include "memattach/process/permission.h"
#include "memattach/process/proc.h"
#include "memattach/python/finder.h"
#include "memattach/session/target.h"
#include "output_file.h"
#include "privileges.h"
#include "target.h"
#include "terminal.h"

namespace memattach::cli {
namespace {

struct Fact {
    std::string name;
    std::string value;
};

/// Something that a user may want, and whether it can be had.
struct Ability {
    std::string name;
    bool works = true;
    std::string why;  ///< where it works: how; else what forbids it
    std::string fix;  ///< where it doesn't
};

struct Findings {
    std::vector<Fact> machine;
    std::vector<Fact> target;  ///< with --pid
    std::string target_error;  ///< why it can't be profiled; empty: it can
    std::vector<Ability> abilities;

    [[nodiscard]] bool usable() const { return target_error.empty() && abilities.front().works; }
};

std::string yes_no(bool value) {
    return value ? "yes" : "no";
}

std::vector<Fact> machine_facts(const Privileges& mine) {
    const auto number = [](const std::optional<int>& value, const char* absent) {
        return value ? fmt::format("{}", *value) : std::string(absent);
    };
    return {
        {"version", version_text()},
        {"kernel", mine.kernel},
        {"uid", fmt::format("{}", mine.effective_uid)},
        {"CAP_SYS_PTRACE", yes_no(mine.has(Capability::sys_ptrace))},
        {"CAP_PERFMON", yes_no(mine.has(Capability::perfmon))},
        {"CAP_BPF", yes_no(mine.has(Capability::bpf))},
        {"CAP_SYS_ADMIN", yes_no(mine.has(Capability::sys_admin))},
        {"kernel.yama.ptrace_scope", number(mine.ptrace_scope, "no yama")},
        {"kernel.perf_event_paranoid", number(mine.perf_event_paranoid, "unknown")},
        {"kernel.perf_event_mlock_kb", number(mine.perf_event_mlock_kb, "unknown")},
        {"seccomp", mine.seccomp_mode == 0   ? "off"
                    : mine.seccomp_mode == 1 ? "strict"
                                             : "filter"},
        {"user namespace", mine.initial_user_namespace ? "the initial one" : "another one"},
        {"pid namespace", mine.initial_pid_namespace ? "the initial one" : "another one (a container)"},
        {"open files", fmt::format("{}", mine.open_files_limit)},
    };
}

std::string perf_fix(const Privileges& mine) {
    if (mine.perf_event_paranoid.value_or(0) > 2) {
        return "sudo sysctl kernel.perf_event_paranoid=2, or run as root, or use --blocking";
    }
    return "give CAP_PERFMON (docker run --cap-add=PERFMON, and a seccomp profile that allows "
           "perf_event_open), or use "
           "--blocking";
}

std::vector<Ability> abilities(const Privileges& mine, const Trial& trial,
                               const std::optional<process::Refusal>& refusal) {
    const std::string seccomp_fix =
        "a seccomp filter or the kernel forbids it: docker run --security-opt seccomp=unconfined "
        "--cap-add=SYS_PTRACE";
    std::vector<Ability> all;

    Ability sampling{"CPU sampling", true, "reads the process's memory while it runs", ""};
    if (refusal) {
        sampling = {sampling.name, false, refusal->why, refusal->fix};
    } else if (!trial.read.empty()) {
        sampling = {sampling.name, false, trial.read, seccomp_fix};
    }
    all.push_back(sampling);

    Ability split{"Python/native/system split", true, "perf's cpu-clock event", ""};
    if (!trial.perf.empty()) split = {split.name, false, trial.perf, perf_fix(mine)};
    all.push_back(split);

    all.push_back({"native frames (--native)", trial.perf.empty() || trial.trace.empty(),
                   trial.perf.empty()    ? "perf's registers and stack, without a stop"
                   : trial.trace.empty() ? "stops a thread for microseconds a sample"
                                         : trial.trace,
                   perf_fix(mine)});

    Ability trace{"stopping threads (memory, --blocking)", true, "ptrace", ""};
    if (refusal) {
        trace = {trace.name, false, refusal->why, refusal->fix};
    } else if (!trial.trace.empty()) {
        trace = {trace.name, false, trial.trace, seccomp_fix};
    }
    all.push_back(trace);

    if (mine.effective_uid != 0 && !mine.has(Capability::sys_ptrace)) {
        all.push_back({"other users' processes", false, "needs CAP_SYS_PTRACE", "run memattach as root"});
    } else {
        all.push_back({"other users' processes", mine.has(Capability::sys_ptrace), "CAP_SYS_PTRACE",
                       "give the container CAP_SYS_PTRACE (docker run --cap-add=SYS_PTRACE)"});
    }
    return all;
}

std::vector<Fact> target_facts(int pid, const python::Runtime& runtime) {
    constexpr std::string_view kSources[] = {"_Py_DebugOffsets in the target", "DWARF of the build",
                                             "DWARF of the build (cached)", "built-in table"};
    const profile::Target target = session::describe_target(pid, runtime);
    std::vector<Fact> facts = {
        {"command", base::printable(target.command, 300)},
        {"Python", base::printable(target.python)},
        {"found by", base::printable(runtime.found_by, 300)},
        {"interpreter's file", base::printable(runtime.module_path, 300)},
        {"build id", runtime.build_id.empty() ? "none" : runtime.build_id},
        {"_PyRuntime at", fmt::format("{:#x}", runtime.address.value())},
        {"offsets from", std::string(kSources[static_cast<std::size_t>(runtime.layout_source)])},
        {"threads", fmt::format("{}", process::list_threads(pid).size())},
    };
    for (const char* kind : {"mnt", "pid", "user"}) {
        if (!process::same_namespace(pid, ::getpid(), kind)) {
            facts.push_back({"namespace", fmt::format("another {} namespace than memattach's", kind)});
        }
    }
    return facts;
}

Findings examine(const std::optional<int>& pid) {
    Findings findings;
    const Privileges mine = read_privileges();
    Trial trial = try_on_child();
    findings.machine = machine_facts(mine);
    std::optional<process::Refusal> refusal;
    if (pid) {
        refusal = process::find_obstacle(*pid);
        try {
            require_target(*pid);
            const process::LiveMemory memory(*pid);
            findings.target = target_facts(*pid, python::find_runtime(*pid, memory));
            require_untraced(*pid, "use --cpu, which traces nothing");
        } catch (const base::Error& error) {
            // What is traced can still be sampled.
            if (findings.target.empty()) {
                findings.target_error = error.what();
            } else {
                trial.trace = error.what();
            }
        }
        if (!findings.target_error.empty()) refusal.reset();  // said already
        if (trial.perf.empty() && findings.target_error.empty()) {
            if (const probe::PerfAccess perf = probe::probe_perf(*pid); !perf.allowed)
                trial.perf = perf.why_not;
        }
    }
    findings.abilities = abilities(mine, trial, refusal);
    return findings;
}

std::string to_text(const Findings& findings, const std::optional<int>& pid, bool color) {
    const auto styled = [color](const char* code, const std::string& text) {
        return color ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
    };
    std::string out = styled("1", "This machine and this user") + "\n";
    for (const Fact& fact : findings.machine) out += fmt::format("  {:<28}{}\n", fact.name, fact.value);
    if (pid) {
        out += "\n" + styled("1", fmt::format("Process {}", *pid)) + "\n";
        for (const Fact& fact : findings.target) out += fmt::format("  {:<28}{}\n", fact.name, fact.value);
        if (!findings.target_error.empty()) out += fmt::format("  {}\n", styled("31", findings.target_error));
    }
    const char* heading = !pid                            ? "What works here, on processes of this user"
                          : findings.target_error.empty() ? "What works on it"
                                                          : "What would work here on other processes";
    out += "\n" + styled("1", heading) + "\n";
    for (const Ability& ability : findings.abilities) {
        out += fmt::format("  {} {}: {}\n", ability.works ? styled("32", "yes") : styled("31", "no "),
                           ability.name, ability.why);
        if (!ability.works && !ability.fix.empty())
            out += fmt::format("        to have it: {}\n", ability.fix);
    }
    return out;
}

std::string to_json(const Findings& findings, const std::optional<int>& pid) {
    const auto object = [](const std::vector<Fact>& facts) {
        nlohmann::ordered_json json = nlohmann::ordered_json::object();
        for (const Fact& fact : facts) json[fact.name] = base::valid_utf8(fact.value);
        return json;
    };
    nlohmann::ordered_json root;
    root["schema"] = "memattach.doctor/1";
    root["usable"] = findings.usable();
    root["machine"] = object(findings.machine);
    if (pid) {
        root["target"] = object(findings.target);
        root["target"]["pid"] = *pid;
        if (!findings.target_error.empty()) root["target"]["error"] = base::valid_utf8(findings.target_error);
    }
    root["abilities"] = nlohmann::ordered_json::array();
    for (const Ability& ability : findings.abilities) {
        nlohmann::ordered_json one = {{"name", ability.name}, {"works", ability.works}, {"why", ability.why}};
        if (!ability.works) one["fix"] = ability.fix;
        root["abilities"].push_back(std::move(one));
    }
    return root.dump(2) + "\n";
}

}  // namespace

int run_doctor(const DoctorCommand& command) {
    OutputFile out("-");
    const Findings findings = examine(command.pid);
    out.write(command.json ? to_json(findings, command.pid)
                           : to_text(findings, command.pid, wants_color(command.no_color)));
    return findings.usable() ? 0 : static_cast<int>(base::ExitCode::unusable);
}

}  // namespace memattach::cli
