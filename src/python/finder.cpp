#include "memattach/python/finder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "layout_cache.h"
#include "locate.h"
#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/permission.h"
#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"
#include "memattach/python/layout_sources.h"
#include "memattach/python/sanity.h"

namespace memattach::python {
namespace {

constexpr std::chrono::milliseconds kPoll{5};

std::string_view name_of(LayoutSource source) {
    constexpr std::array<std::string_view, 4> kNames = {"debug offsets", "DWARF", "cached DWARF",
                                                        "built-in table"};
    return kNames[static_cast<std::size_t>(source)];
}

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
        Located located = locate_interpreters(pid_, memory_);
        for (const Interpreter& interpreter : located.interpreters) {
            std::string reason;
            not_started_ = false;
            if (auto runtime = read_runtime(interpreter, reason)) return runtime;
            waits_for_interpreter_ |= not_started_;
            if (why.empty() || !not_started_) why = std::move(reason);
        }
        if (!why.empty()) return std::nullopt;
        if (located.old_version) throw base::Error(too_old(*located.old_version));
        waits_for_interpreter_ |= located.may_appear;
        why = fmt::format("process {} ({}) {}", pid_, base::printable(process::command_line(pid_), 200),
                          located.other.empty() ? "is not Python" : located.other);
        if (!located.unopened.empty()) why += "; " + base::printable(located.unopened);
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
        runtime.build_id = interpreter.build_id();
        runtime.found_by = interpreter.found_by;
        for (const process::Mapping& mapping : interpreter.module.mappings) {
            if (!mapping.executable) continue;
            if (runtime.text_start.is_null()) runtime.text_start = mapping.start;
            runtime.text_end = mapping.end;
        }

        std::vector<std::byte> head(kDebugOffsetsBytes);
        head.resize(memory_.read_up_to(interpreter.runtime, head));
        std::string reasons;
        std::string reason;
        const auto offsets = parse_debug_offsets(head, reason);
        const auto version = offsets ? offsets->version : find_version(interpreter, memory_);
        if (!version) {
            not_started_ = true;  // before 3.11 the text that says it is written at start-up
            why = not_started();
            return std::nullopt;
        }
        if (version->major != 3 || version->minor < 8) throw base::Error(too_old(*version));
        runtime.version = *version;
        if (offsets) {
            runtime.free_threaded = offsets->free_threaded;
            if (accept(runtime, offsets->layout, LayoutSource::debug_offsets, reasons)) {
                if (!offsets->known_shape)
                    runtime.notes.push_back(
                        fmt::format("Python {}.{} is newer than this memattach: read by its debug offsets, "
                                    "taken to be like {}",
                                    version->major, version->minor, newest_known_version()));
                return runtime;
            }
        } else {
            note(reasons, "debug offsets", reason);
        }
        if (!not_started_ && read_by_dwarf(runtime, interpreter, reasons)) return runtime;
        if (!not_started_ && read_by_table(runtime, reasons)) return runtime;
        why = not_started_ ? not_started()
                           : fmt::format(
                                 "the structures of Python {}.{}.{} in {} can't be read ({}): the "
                                 "package with its debug symbols would tell them",
                                 version->major, version->minor, version->micro,
                                 base::printable(interpreter.module.path), reasons);
        return std::nullopt;
    }

    bool read_by_dwarf(Runtime& runtime, const Interpreter& interpreter, std::string& reasons) {
        const LayoutCache cache(options_.cache_directory);
        std::string ignored;
        if (auto layout = cache.load(runtime.build_id)) {
            apply_version(runtime.version, *layout);
            if (is_plausible(*layout, ignored) &&
                accept(runtime, *layout, LayoutSource::dwarf_cache, ignored))
                return true;
            if (not_started_) return false;
        }
        std::string reason = "no file to read it from";
        std::optional<Layout> layout;
        if (interpreter.image) layout = layout_from_dwarf(*interpreter.image, runtime.version, reason);
        if (!layout) {
            if (const auto debug_file = open_debug_file(runtime.build_id))
                layout = layout_from_dwarf(*debug_file, runtime.version, reason);
        }
        if (!layout) {
            note(reasons, "DWARF", reason);
            return false;
        }
        if (!accept(runtime, *layout, LayoutSource::dwarf, reasons)) return false;
        cache.save(runtime.build_id, *layout);
        return true;
    }

    /// What a distribution's debug package installs, in the target's root or in memattach's own.
    [[nodiscard]] std::optional<elf::Image> open_debug_file(const std::string& build_id) const {
        if (build_id.size() < 4) return std::nullopt;
        const std::string path =
            fmt::format("/usr/lib/debug/.build-id/{}/{}.debug", build_id.substr(0, 2), build_id.substr(2));
        for (const int pid : {pid_, ::getpid()}) {
            auto image = elf::Image::open(process::open_in_target(pid, path));
            if (image && image->build_id() == build_id) return image;
        }
        return std::nullopt;
    }

    bool read_by_table(Runtime& runtime, std::string& reasons) {
        bool any = false;
        for (const BuiltInLayout& table : built_in_layouts()) {
            if (table.version.minor != runtime.version.minor) continue;
            any = true;
            Layout layout = table.layout;
            apply_version(runtime.version, layout);
            if (accept(runtime, layout, LayoutSource::built_in, reasons)) return true;
        }
        if (!any) note(reasons, "built-in tables", fmt::format("none for 3.{}", runtime.version.minor));
        return false;
    }

    [[nodiscard]] std::string not_started() const {
        return fmt::format("process {} has not started its Python interpreter, or has ended it", pid_);
    }

    static void note(std::string& reasons, std::string_view source, const std::string& reason) {
        reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", source, reason);
    }

    bool accept(Runtime& runtime, const Layout& layout, LayoutSource source, std::string& reasons) {
        std::string why;
        const Sanity sanity = check_layout(memory_, runtime.address, layout, why);
        if (sanity == Sanity::not_started) {
            not_started_ = true;
            return false;
        }
        if (sanity == Sanity::contradicted) {
            note(reasons, name_of(source), why);
            return false;
        }
        runtime.layout = layout;
        runtime.layout_source = source;
        return true;
    }

    int pid_;
    const process::Memory& memory_;
    const FindOptions& options_;
    bool not_started_ = false;            ///< the interpreter that is being looked at
    bool waits_for_interpreter_ = false;  ///< one of them is
};

}  // namespace

Runtime find_runtime(int pid, const process::Memory& memory, const FindOptions& options) {
    return Finder(pid, memory, options).find();
}

}  // namespace memattach::python
