#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"
#include "memattach/python/finder.h"
#include "memattach/python/reader.h"
#include "memattach/session/source_lines.h"
#include "memattach/session/target.h"
#include "output_file.h"
#include "target.h"
#include "terminal.h"
#include "thread_activity.h"

namespace memattach::cli {
namespace {

/// How often a stack that moves is read again: here, unlike in sampling, a stack that was never there is
/// worse than one that takes a millisecond.
constexpr int kTries = 200;

struct DumpedThread {
    int tid = 0;
    std::string name;
    Activity activity;
    bool python = false;
    bool holds_gil = false;
    bool torn = false;  ///< it moved while it was read: the innermost frames may mix two moments
    std::int64_t interpreter_id = 0;
    trace::Stack stack;
};

/// What is known of a process at one moment, without stopping it.
struct Dump {
    profile::Target target;
    std::vector<DumpedThread> threads;
    trace::FunctionTable functions;
    trace::LossCounts losses;
};

void read_python_threads(Dump& dump, int pid, const python::Runtime& runtime) {
    const process::LiveMemory memory(pid);
    python::StackReader reader(memory, runtime, pid);
    python::CodeCache codes(memory, runtime, dump.functions);
    for (const python::ThreadState& state : reader.threads()) {
        auto thread = std::find_if(dump.threads.begin(), dump.threads.end(),
                                   [&](const DumpedThread& t) { return t.tid == state.tid; });
        if (thread == dump.threads.end()) {
            // Its thread has ended, or its id can't be told: the stack is worth showing all the same.
            dump.threads.emplace_back();
            thread = std::prev(dump.threads.end());
            thread->tid = state.tid;
        }
        // One right after the other: what it waits in belongs to the stack.
        python::RawStack raw;
        python::WalkStatus status = reader.walk(state.address, raw);
        for (int i = 0; i < kTries && status == python::WalkStatus::torn; ++i)
            status = reader.walk(state.address, raw);
        thread->activity = thread_activity(pid, thread->tid);
        if (status == python::WalkStatus::gone) continue;
        thread->python = true;
        thread->interpreter_id = state.interpreter_id;
        thread->torn = status == python::WalkStatus::torn;
        if (reader.gil_holder() == state.address) {
            // The threads are looked at one after the other; the GIL may have been handed on meanwhile.
            for (DumpedThread& other : dump.threads) other.holds_gil = false;
            thread->holds_gil = true;
        }
        trace::Stack stack;
        codes.resolve(raw, stack, dump.losses);
        // A thread can have states in several interpreters; the one that runs code is what is asked for.
        if (thread->stack.empty()) thread->stack = std::move(stack);
    }
}

Dump take_dump(int pid) {
    Dump dump;
    const process::LiveMemory memory(pid);
    const python::Runtime runtime = python::find_runtime(pid, memory);
    dump.target = session::describe_target(pid, runtime);
    for (const int tid : process::list_threads(pid)) {
        DumpedThread thread;
        thread.tid = tid;
        thread.name = thread_name(pid, tid);
        dump.threads.push_back(std::move(thread));
    }
    read_python_threads(dump, pid, runtime);
    for (DumpedThread& thread : dump.threads) {
        if (!thread.python) thread.activity = thread_activity(pid, thread.tid);
    }
    return dump;
}

class Renderer {
  public:
    explicit Renderer(bool color) : color_(color) {}

    std::string text(const Dump& dump, int pid, session::SourceLines& source) const {
        std::string out =
            fmt::format("Process {}: {}\nPython {}, {}\n", pid, base::printable(dump.target.command, 500),
                        base::printable(dump.target.python), base::printable(dump.target.exe));
        std::size_t native = 0;
        for (const DumpedThread& thread : dump.threads) {
            if (!thread.python) {
                ++native;
                continue;
            }
            out += "\n" + heading(thread) + "\n";
            for (const trace::Frame& frame : thread.stack) out += line(dump, frame, source);
            if (thread.stack.empty()) out += "    (runs no Python code now)\n";
        }
        if (native > 0)
            out += fmt::format("\n{} more thread{} without Python\n", native, native == 1 ? "" : "s");
        return out;
    }

  private:
    [[nodiscard]] std::string styled(const char* code, const std::string& text) const {
        return color_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
    }

    [[nodiscard]] std::string heading(const DumpedThread& thread) const {
        std::string what = describe(thread.activity);
        if (thread.holds_gil) what += ", holds the GIL";
        if (thread.interpreter_id != 0) what += fmt::format(", interpreter {}", thread.interpreter_id);
        if (thread.torn) what += ", moved while it was read";
        return fmt::format(
            "{}  {}", styled("1", fmt::format("Thread {} \"{}\"", thread.tid, base::printable(thread.name))),
            styled(thread.activity.running ? "32" : "2", what));
    }

    [[nodiscard]] std::string line(const Dump& dump, const trace::Frame& frame,
                                   session::SourceLines& source) const {
        const trace::Function& function = dump.functions.at(frame.function);
        if (function.kind == trace::FunctionKind::marker) return fmt::format("    {}\n", function.name);
        const std::string place = frame.line > 0
                                      ? fmt::format("{}:{}", base::printable(function.file), frame.line)
                                      : base::printable(function.file);
        std::string text = fmt::format("    {} ({})", base::printable(function.name, 200), place);
        std::string code = frame.line > 0 ? source.line(function.file, frame.line) : "";
        code.erase(0, code.find_first_not_of(" \t"));
        if (!code.empty()) text += styled("2", "  " + base::printable(code, 100));
        return text + "\n";
    }

    bool color_;
};

nlohmann::ordered_json or_null(const std::string& text) {
    if (text.empty()) return nullptr;
    return base::valid_utf8(text);
}

std::string to_json(const Dump& dump, int pid) {
    nlohmann::ordered_json root;
    root["schema"] = "memattach.dump/1";
    root["target"] = {{"pid", pid},
                      {"command", base::valid_utf8(dump.target.command)},
                      {"python", base::valid_utf8(dump.target.python)},
                      {"exe", base::valid_utf8(dump.target.exe)}};
    root["threads"] = nlohmann::ordered_json::array();
    for (const DumpedThread& thread : dump.threads) {
        nlohmann::ordered_json one;
        one["tid"] = thread.tid;
        one["name"] = base::valid_utf8(thread.name);
        one["state"] = thread.activity.state;
        one["waiting_in"] = or_null(thread.activity.system_call);
        one["waiting_on"] = or_null(thread.activity.object);
        one["python"] = thread.python;
        one["holds_gil"] = thread.holds_gil;
        one["torn"] = thread.torn;
        one["interpreter"] =
            thread.python ? nlohmann::ordered_json(thread.interpreter_id) : nlohmann::ordered_json();
        one["frames"] = nlohmann::ordered_json::array();
        for (const trace::Frame& frame : thread.stack) {
            const trace::Function& function = dump.functions.at(frame.function);
            one["frames"].push_back(
                {{"function", base::valid_utf8(function.name)},
                 {"file", base::valid_utf8(function.file)},
                 {"line", frame.line > 0 ? nlohmann::ordered_json(frame.line) : nlohmann::ordered_json()}});
        }
        root["threads"].push_back(std::move(one));
    }
    return root.dump(2) + "\n";
}

}  // namespace

int run_dump(const DumpCommand& command) {
    require_target(command.pid);
    OutputFile out("-");
    const Dump dump = take_dump(command.pid);
    if (command.json) {
        out.write(to_json(dump, command.pid));
    } else {
        session::SourceLines source(command.pid);
        out.write(Renderer(wants_color(command.no_color)).text(dump, command.pid, source));
    }
    return 0;
}

}  // namespace memattach::cli
