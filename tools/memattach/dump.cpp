#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "commands.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/probe/brief_stop.h"
#include "memattach/probe/cpu_native.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"
#include "memattach/python/finder.h"
#include "memattach/python/reader.h"
#include "memattach/python/thread_name.h"
#include "memattach/session/priority.h"
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

/// What the stack of one thread takes from the process: bounds how long a stop lasts.
constexpr std::size_t kMaxStackBytes = 256 << 10;

/// After so many threads that didn't come to a stop (each is waited for a twentieth of a second) no other one
/// is asked to.
constexpr int kMaxLate = 10;

/// Of a thread that was stopped for a moment, what its native frames are unwound from once it runs again.
struct NativeLook {
    probe::StoppedRegisters registers;
    std::vector<std::byte> stack;  ///< from the stack pointer up
    std::vector<bool> entries;     ///< CodeCache::entries() of the Python frames
};

struct DumpedThread {
    int tid = 0;  ///< 0 where it can't be told
    std::string name;
    Activity activity;
    bool python = false;
    bool holds_gil = false;
    std::optional<base::Address> gil;  ///< the one it holds
    bool waits_for_gil = false;
    bool torn = false;  ///< it moved while it was read: the innermost frames may mix two moments
    std::int64_t interpreter_id = 0;
    trace::Stack stack;
    std::optional<NativeLook> native;
    std::string note;  ///< why its native frames are missing or uncertain
};

/// What --native cost the process. Its threads are stopped one at a time.
struct Stops {
    int threads = 0;
    std::uint64_t longest_ns = 0, total_ns = 0;
};

/// What is known of a process at one moment, without stopping it (but for --native).
struct Dump {
    profile::Target target;
    std::vector<DumpedThread> threads;
    trace::FunctionTable functions;
    trace::LossCounts losses;
    std::optional<Stops> stops;
};

/// Looks at one thread after the other.
class ThreadLooks {
  public:
    ThreadLooks(Dump& dump, int pid, const python::Runtime& runtime)
        : dump_(dump),
          pid_(pid),
          runtime_(runtime),
          memory_(pid),
          reader_(memory_, runtime, pid),
          codes_(memory_, runtime, dump.functions) {}

    void look_at_all(bool native);

  private:
    using States = std::vector<python::ThreadState>;
    struct Walk {
        python::ThreadState state;
        python::RawStack raw;
        python::WalkStatus status = python::WalkStatus::gone;
        bool holds_gil = false;
    };

    std::vector<Walk> walk(const States& states, bool stopped);
    std::vector<Walk> walk_stopped(DumpedThread& thread, const States& states);
    void take(DumpedThread& thread, const std::vector<Walk>& walks);

    Dump& dump_;
    int pid_;
    const python::Runtime& runtime_;
    process::LiveMemory memory_;
    python::StackReader reader_;
    python::CodeCache codes_;
    probe::BriefStops stops_;
    int late_ = 0;
    std::vector<std::byte> bytes_;
};

std::vector<ThreadLooks::Walk> ThreadLooks::walk(const States& states, bool stopped) {
    std::vector<Walk> walks;
    for (const python::ThreadState& state : states) {
        Walk& walk = walks.emplace_back();
        walk.state = state;
        walk.status = reader_.walk(state.address, walk.raw, stopped);
        for (int i = 0; i < kTries && !stopped && walk.status == python::WalkStatus::torn; ++i)
            walk.status = reader_.walk(state.address, walk.raw);
        walk.holds_gil = reader_.gil_holder() == state.address;
    }
    return walks;
}

/// Native and Python stack of the same moment; the Python stack alone where the thread can't be stopped.
std::vector<ThreadLooks::Walk> ThreadLooks::walk_stopped(DumpedThread& thread, const States& states) {
    if (thread.tid == 0) {
        thread.note = "no native frames: which thread it is can't be told";
        return walk(states, false);
    }
    if (late_ >= kMaxLate) {
        thread.note = "no native frames: too many other threads didn't come to a stop in time";
        return walk(states, false);
    }
    // New pages and a first look at a thread take time: better before the stop than in it.
    bytes_.resize(kMaxStackBytes);
    for (const python::ThreadState& state : states) {
        python::RawStack seen;
        reader_.walk(state.address, seen);
    }
    NativeLook look;
    switch (stops_.stop(thread.tid, look.registers)) {
        case probe::StopResult::stopped:
            break;
        case probe::StopResult::gone:
            thread.note = "no native frames: it has ended";
            return walk(states, false);
        case probe::StopResult::refused:
            thread.note = fmt::format("no native frames: it may not be stopped: {}",
                                      base::errno_text(stops_.last_error()));
            return walk(states, false);
        case probe::StopResult::late:
            ++late_;
            thread.note = "no native frames: it didn't come to a stop in time";
            return walk(states, false);
    }
    const base::Address sp(look.registers.values[probe::kPerfRegisterSp]);
    const std::size_t size = memory_.read_up_to(sp, bytes_);
    std::vector<Walk> walks = walk(states, true);
    stops_.release();
    ++dump_.stops->threads;
    look.stack.assign(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(size));
    thread.native = std::move(look);
    return walks;
}

void ThreadLooks::take(DumpedThread& thread, const std::vector<Walk>& walks) {
    python::RawStack raw;
    for (const Walk& walk : walks) {
        if (walk.status == python::WalkStatus::gone) continue;
        if (walk.holds_gil) {
            // The threads are looked at one after the other; this GIL may have been handed on meanwhile.
            const auto gil = reader_.gil(walk.state.interpreter);
            for (DumpedThread& other : dump_.threads)
                if (other.gil == gil) other.holds_gil = false;
            thread.holds_gil = true;
            thread.gil = gil;
        }
        thread.python = true;
        thread.torn |= walk.status == python::WalkStatus::torn;
        if (raw.frames.empty()) {
            // The innermost that runs code.
            thread.interpreter_id = walk.state.interpreter_id;
            raw = walk.raw;
        } else {
            python::append_outer(raw, walk.raw);
        }
    }
    if (!thread.python) return;
    codes_.resolve(raw, thread.stack, dump_.losses);
    if (thread.native) thread.native->entries = codes_.entries();
}

void ThreadLooks::look_at_all(bool native) {
    std::map<int, States> states;
    std::vector<States> others;
    for (const python::ThreadState& state : reader_.threads()) {
        if (state.tid == 0) {
            others.push_back({state});
        } else {
            states[state.tid].push_back(state);
        }
    }
    for (const auto& [tid, of_thread] : states) {
        // Its thread is new, or has ended: the stack is worth showing all the same.
        if (std::none_of(dump_.threads.begin(), dump_.threads.end(),
                         [tid = tid](const DumpedThread& thread) { return thread.tid == tid; }))
            dump_.threads.emplace_back().tid = tid;
    }
    const std::size_t known = dump_.threads.size();
    dump_.threads.resize(known + others.size());
    for (std::size_t i = 0; i < dump_.threads.size(); ++i) {
        DumpedThread& thread = dump_.threads[i];
        const States& of_thread = i < known ? states[thread.tid] : others[i - known];
        thread.name = thread_name(pid_, thread.tid);
        for (const python::ThreadState& state : of_thread)
            if (auto name = python::read_thread_name(memory_, runtime_, state.address))
                thread.name = std::move(*name);
        std::vector<Walk> walks;
        if (native) {
            // First, as it would tell of the stop.
            thread.activity = thread_activity(pid_, thread.tid);
            walks = walk_stopped(thread, of_thread);
        } else {
            // One right after the other: what it waits in belongs to the stack.
            walks = walk(of_thread, false);
            thread.activity = thread_activity(pid_, thread.tid);
        }
        take(thread, walks);
        if (thread.activity.system_call == "futex") {
            const base::Address word(thread.activity.first_argument);
            for (const python::ThreadState& state : of_thread)
                thread.waits_for_gil |= reader_.waits_for_gil(state.interpreter, word);
        }
    }
    if (native) {
        dump_.stops->longest_ns = stops_.longest_ns();
        dump_.stops->total_ns = stops_.total_ns();
    }
}

/// Threads that were asked to stop and didn't are waited for by nobody. So it is a thread of ours that asks:
/// when it ends, the kernel takes back what it asked for, and lets go who stopped meanwhile (ptrace(2),
/// "Death of tracer").
void look_with_stops(Dump& dump, int pid, const python::Runtime& runtime) {
    std::exception_ptr failure;
    std::thread([&] {
        try {
            // Who holds a thread must not wait for a CPU meanwhile.
            const session::SamplingPriority priority(session::Promptness::real_time);
            ThreadLooks(dump, pid, runtime).look_at_all(true);
        } catch (...) {
            failure = std::current_exception();
        }
    }).join();
    if (failure) std::rethrow_exception(failure);
}

void add_native_frames(Dump& dump, int pid, const python::Runtime& runtime) {
    const process::LiveMemory memory(pid);
    probe::NativeFrames frames(pid, runtime, memory, dump.functions);
    for (DumpedThread& thread : dump.threads) {
        if (!thread.native) continue;
        const std::uint64_t mismatched = frames.mismatched();
        thread.stack = frames.merge(thread.native->registers.values, thread.native->stack, thread.stack,
                                    thread.native->entries);
        if (frames.mismatched() > mismatched)
            thread.note = "native and Python frames don't match one to one: where they belong is a guess";
    }
}

Dump take_dump(int pid, bool native) {
    Dump dump;
    const process::LiveMemory memory(pid);
    const python::Runtime runtime = python::find_runtime(pid, memory);
    dump.target = session::describe_target(pid, runtime);
    for (const int tid : process::list_threads(pid)) dump.threads.emplace_back().tid = tid;
    if (native) {
        dump.stops.emplace();
        look_with_stops(dump, pid, runtime);
        add_native_frames(dump, pid, runtime);
    } else {
        ThreadLooks(dump, pid, runtime).look_at_all(false);
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
            if (!thread.python && !dump.stops) {
                ++native;
                continue;
            }
            out += "\n" + heading(thread) + "\n";
            if (!thread.note.empty()) out += fmt::format("    ({})\n", thread.note);
            for (const trace::Frame& frame : thread.stack) out += line(dump, frame, source);
            if (thread.python && thread.stack.empty()) out += "    (runs no Python code now)\n";
        }
        if (native > 0)
            out += fmt::format("\n{} more thread{} without Python\n", native, native == 1 ? "" : "s");
        if (dump.stops)
            out +=
                fmt::format("\n{} thread{} stopped for the native frames, one at a time, for {} µs at most\n",
                            dump.stops->threads, dump.stops->threads == 1 ? "" : "s",
                            (dump.stops->longest_ns + 999) / 1000);
        return out;
    }

  private:
    [[nodiscard]] std::string styled(const char* code, const std::string& text) const {
        return color_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
    }

    [[nodiscard]] std::string heading(const DumpedThread& thread) const {
        if (thread.tid == 0)
            return styled("1", "A thread, it can't be told which") +
                   fmt::format("  interpreter {}", thread.interpreter_id);
        std::string what = thread.waits_for_gil && thread.activity.state == "waiting"
                               ? "waiting for the GIL"
                               : describe(thread.activity);
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

const char* kind_name(trace::FunctionKind kind) {
    switch (kind) {
        case trace::FunctionKind::python:
            return "python";
        case trace::FunctionKind::native:
            return "native";
        case trace::FunctionKind::kernel:
            return "kernel";
        case trace::FunctionKind::marker:
            break;
    }
    return "marker";
}

std::string to_json(const Dump& dump, int pid) {
    nlohmann::ordered_json root;
    root["schema"] = "memattach.dump/1";
    root["target"] = {{"pid", pid},
                      {"command", base::valid_utf8(dump.target.command)},
                      {"python", base::valid_utf8(dump.target.python)},
                      {"exe", base::valid_utf8(dump.target.exe)}};
    root["stops"] = nullptr;
    if (dump.stops)
        root["stops"] = {{"threads", dump.stops->threads},
                         {"longest_ns", dump.stops->longest_ns},
                         {"total_ns", dump.stops->total_ns}};
    root["threads"] = nlohmann::ordered_json::array();
    for (const DumpedThread& thread : dump.threads) {
        nlohmann::ordered_json one;
        one["tid"] = thread.tid != 0 ? nlohmann::ordered_json(thread.tid) : nlohmann::ordered_json();
        one["name"] = base::valid_utf8(thread.name);
        one["state"] = or_null(thread.tid != 0 ? thread.activity.state : "");
        one["waiting_in"] = or_null(thread.activity.system_call);
        one["waiting_on"] = or_null(thread.waits_for_gil ? "the GIL" : thread.activity.object);
        one["python"] = thread.python;
        one["holds_gil"] = thread.holds_gil;
        one["waits_for_gil"] = thread.waits_for_gil;
        one["torn"] = thread.torn;
        one["interpreter"] =
            thread.python ? nlohmann::ordered_json(thread.interpreter_id) : nlohmann::ordered_json();
        one["note"] = or_null(thread.note);
        one["frames"] = nlohmann::ordered_json::array();
        for (const trace::Frame& frame : thread.stack) {
            const trace::Function& function = dump.functions.at(frame.function);
            one["frames"].push_back(
                {{"kind", kind_name(function.kind)},
                 {"function", base::valid_utf8(function.name)},
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
    const Dump dump = take_dump(command.pid, command.native);
    if (command.json) {
        out.write(to_json(dump, command.pid));
    } else {
        session::SourceLines source(command.pid);
        out.write(Renderer(wants_color(command.no_color)).text(dump, command.pid, source));
    }
    return 0;
}

}  // namespace memattach::cli
