#include "memattach/python/finder.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "locate.h"
#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/permission.h"
#include "memattach/process/proc.h"
#include "memattach/python/layout_sources.h"
#include "memattach/python/sanity.h"

namespace memattach::python {
namespace {

constexpr std::chrono::milliseconds kPoll{5};

class Finder {
  public:
    Finder(int pid, const process::Memory& memory, const FindOptions& options)
        : pid_(pid), memory_(memory), options_(options) {}

    Runtime find() {
        const std::uint64_t begin_ns = base::monotonic_ns();
        const auto patience = [&] {
            const std::chrono::nanoseconds waited(base::monotonic_ns() - begin_ns);
            return waited < options_.startup_wait;
        };
        while (true) {
            check_process();
            std::string not_yet;
            if (auto runtime = look(not_yet)) return *runtime;
            if (!patience() || !(started_lately() || waits_for_interpreter_)) throw base::Error(not_yet);
            std::this_thread::sleep_for(kPoll);
        }
    }

  private:
    void check_process() const {
        const auto status = process::read_status(pid_);
        const auto stat = process::read_stat(pid_);
        if (!status || !stat) base::throw_error("no process {}", pid_);
        const std::string comm = base::printable(stat->comm);
        if (status->thread_group_id != pid_)
            base::throw_error("{} is a thread of process {} ({}): use that", pid_, status->thread_group_id,
                              comm);
        if (stat->is_kernel_thread()) base::throw_error("process {} ({}) is a kernel thread", pid_, comm);
        if (stat->is_zombie()) base::throw_error("process {} ({}) has ended and is a zombie", pid_, comm);
    }

    /// True where the process is so young that it may still be about to exec Python.
    [[nodiscard]] bool started_lately() const {
        const auto stat = process::read_stat(pid_);
        return stat &&
               process::age_s(*stat) < std::chrono::duration<double>(options_.startup_wait).count() + 0.1;
    }

    std::optional<Runtime> look(std::string& why) {
        waits_for_interpreter_ = false;
        if (const auto refusal = process::find_obstacle(pid_)) throw base::Error(refusal->text());
        Located located = locate_interpreter(pid_, memory_);
        if (located.interpreter) return read_runtime(*located.interpreter, why);
        if (located.old_version) {
            why = too_old(*located.old_version);
        } else {
            why = fmt::format("process {} ({}) is not Python", pid_,
                              base::printable(process::command_line(pid_), 200));
        }
        if (!located.unopened.empty()) why += "; " + located.unopened;
        return std::nullopt;
    }

    [[nodiscard]] std::string too_old(const Version& version) const {
        return fmt::format("process {} runs Python {}.{}, which is too old: memattach reads 3.8 and newer",
                           pid_, version.major, version.minor);
    }

    std::optional<Runtime> read_runtime(const Interpreter& interpreter, std::string& why) {
        Runtime runtime;
        runtime.address = interpreter.runtime;
        runtime.module_path = interpreter.module.path;
        runtime.build_id = interpreter.image ? interpreter.image->build_id() : "";
        runtime.found_by = interpreter.found_by;
        for (const process::Mapping& mapping : interpreter.module.mappings) {
            if (!mapping.executable) continue;
            if (runtime.text_start.is_null()) runtime.text_start = mapping.start;
            runtime.text_end = mapping.end;
        }

        std::string reasons;
        std::vector<std::byte> head(kDebugOffsetsBytes);
        head.resize(memory_.read_up_to(interpreter.runtime, head));
        std::string reason;
        if (auto offsets = parse_debug_offsets(head, reason)) {
            runtime.version = offsets->version;
            runtime.free_threaded = offsets->free_threaded;
            if (accept(runtime, offsets->layout, LayoutSource::debug_offsets, reasons)) return runtime;
        } else {
            const auto version = find_version(interpreter, memory_);
            if (!version) {
                waits_for_interpreter_ = true;  // the text that says it is written at start-up
                why = fmt::format("the version of {} can't be told", interpreter.module.path);
                return std::nullopt;
            }
            if (version->major != 3 || version->minor < 8) throw base::Error(too_old(*version));
            runtime.version = *version;
            note(reasons, "debug offsets", reason);
            const auto from_dwarf =
                interpreter.image ? layout_from_dwarf(*interpreter.image, *version, reason) : std::nullopt;
            if (from_dwarf) {
                if (accept(runtime, *from_dwarf, LayoutSource::dwarf, reasons)) return runtime;
            } else {
                note(reasons, "DWARF", reason);
            }
            for (const BuiltInLayout& built_in : built_in_layouts()) {
                if (built_in.version.minor != version->minor) continue;
                Layout layout = built_in.layout;
                apply_version(*version, built_in.free_threaded, layout);
                if (accept(runtime, layout, LayoutSource::built_in, reasons)) return runtime;
            }
        }
        why = waits_for_interpreter_
                  ? fmt::format("process {} has not started its interpreter yet", pid_)
                  : fmt::format("the structures of Python {}.{}.{} in {} can't be read ({})",
                                runtime.version.major, runtime.version.minor, runtime.version.micro,
                                interpreter.module.path, reasons);
        return std::nullopt;
    }

    static void note(std::string& reasons, std::string_view source, const std::string& reason) {
        reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", source, reason);
    }

    bool accept(Runtime& runtime, const Layout& layout, LayoutSource source, std::string& reasons) {
        std::string why;
        const Sanity sanity = check_layout(memory_, runtime.address, layout, why);
        if (sanity == Sanity::not_started) {
            waits_for_interpreter_ = true;
            return false;
        }
        if (sanity == Sanity::contradicted) {
            note(reasons, "its layout is not the target's", why);
            return false;
        }
        runtime.layout = layout;
        runtime.layout_source = source;
        return true;
    }

    int pid_;
    const process::Memory& memory_;
    const FindOptions& options_;
    bool waits_for_interpreter_ = false;
};

}  // namespace

Runtime find_runtime(int pid, const process::Memory& memory, const FindOptions& options) {
    return Finder(pid, memory, options).find();
}

}  // namespace memattach::python
