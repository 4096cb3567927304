#include "memattach/python/finder.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/elf/image.h"
#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"
#include "memattach/python/layout_sources.h"
#include "memattach/python/sanity.h"
#include "module.h"
#include "version_text.h"

namespace memattach::python {
namespace {

constexpr std::chrono::milliseconds kPoll{5};
constexpr std::size_t kMaxScanBytes = 8 << 20;  ///< of one writable mapping

/// A place where _PyRuntime is, in a module that is open.
struct Place {
    Module module;
    elf::Image image;
    std::uint64_t bias = 0;
    base::Address runtime;
    std::string found_by;
};

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
        timespec now{};
        if (!stat || ::clock_gettime(CLOCK_BOOTTIME, &now) != 0) return false;
        const double age_s =
            static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9 -
            static_cast<double>(stat->start_ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
        return age_s < std::chrono::duration<double>(options_.startup_wait).count() + 0.1;
    }

    std::optional<Runtime> look(std::string& why) {
        waits_for_interpreter_ = false;
        errno = 0;
        const auto maps = process::read_maps(pid_);
        if (maps.empty())
            base::throw_error("process {} can't be read: {}", pid_,
                              base::errno_text(errno != 0 ? errno : ESRCH));
        const std::string exe = process::read_link(fmt::format("/proc/{}/exe", pid_)).value_or("");
        auto place = find_place(candidate_modules(maps, exe), why);
        if (!place) return std::nullopt;
        return read_runtime(*place, why);
    }

    std::optional<Place> find_place(std::vector<Module> modules, std::string& why) {
        std::string unopened;
        for (Module& module : modules) {
            std::string reason;
            auto file = process::open_mapped_file(pid_, module.mappings.front(), reason);
            if (!file.is_open()) {
                if (unopened.empty()) unopened = reason;
                continue;
            }
            auto image = elf::Image::open(std::move(file));
            const auto bias = image ? image->load_bias(module.mappings) : std::nullopt;
            if (!bias) continue;
            Place place{std::move(module), std::move(*image), *bias, {}, {}};
            if (locate_runtime(place)) return place;
        }
        why = fmt::format("process {} ({}) is not Python", pid_,
                          base::printable(process::command_line(pid_), 200));
        for (const Module& module : modules) {
            const auto version = version_in_name(module.base_name());
            if (version && (version->major < 3 || version->minor < 8)) why = too_old(*version);
        }
        if (!unopened.empty()) why += "; " + unopened;
        return std::nullopt;
    }

    [[nodiscard]] std::string too_old(const Version& version) const {
        return fmt::format("process {} runs Python {}.{}, which is too old: memattach reads 3.8 and newer",
                           pid_, version.major, version.minor);
    }

    static bool locate_runtime(Place& place) {
        if (const auto symbol = place.image.find_symbol("_PyRuntime")) {
            place.runtime = base::Address(place.bias + symbol->value);
            place.found_by = fmt::format("symbol _PyRuntime in {} of {}", symbol->table, place.module.path);
            return true;
        }
        if (const auto section = place.image.find_section(".PyRuntime")) {
            place.runtime = base::Address(place.bias + section->address);
            place.found_by = fmt::format("section .PyRuntime of {}", place.module.path);
            return true;
        }
        return false;
    }

    std::optional<Runtime> read_runtime(const Place& place, std::string& why) {
        Runtime runtime;
        runtime.address = place.runtime;
        runtime.module_path = place.module.path;
        runtime.build_id = place.image.build_id();
        runtime.found_by = place.found_by;
        for (const process::Mapping& mapping : place.module.mappings) {
            if (!mapping.executable) continue;
            if (runtime.text_start.is_null()) runtime.text_start = mapping.start;
            runtime.text_end = mapping.end;
        }

        std::string reasons;
        std::vector<std::byte> head(kDebugOffsetsBytes);
        head.resize(memory_.read_up_to(place.runtime, head));
        std::string reason;
        if (auto offsets = parse_debug_offsets(head, reason)) {
            runtime.version = offsets->version;
            runtime.free_threaded = offsets->free_threaded;
            if (accept(runtime, offsets->layout, LayoutSource::debug_offsets, reasons)) return runtime;
        } else {
            const auto version = find_version(place);
            if (!version) {
                waits_for_interpreter_ = true;  // the text that says it is written at start-up
                why = fmt::format("the version of {} can't be told", place.module.path);
                return std::nullopt;
            }
            if (version->major != 3 || version->minor < 8) throw base::Error(too_old(*version));
            runtime.version = *version;
            note(reasons, "debug offsets", reason);
            if (auto layout = layout_from_dwarf(place.image, *version, reason)) {
                if (accept(runtime, *layout, LayoutSource::dwarf, reasons)) return runtime;
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
                                place.module.path, reasons);
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

    std::optional<Version> find_version(const Place& place) const {
        // unsigned long Py_Version, read-only, 3.11+ (Include/pylifecycle.h)
        if (const auto symbol = place.image.find_symbol("Py_Version")) {
            const auto value = memory_.read<std::uint64_t>(base::Address(place.bias + symbol->value));
            if (value && *value >> 24 == 3) return version_from_hex(static_cast<std::uint32_t>(*value));
        }
        for (const process::Mapping& mapping : place.module.data) {
            std::string bytes(std::min<std::uint64_t>(mapping.size_bytes(), kMaxScanBytes), '\0');
            bytes.resize(memory_.read_up_to(mapping.start, std::as_writable_bytes(std::span(bytes))));
            if (const auto version = find_version_text(bytes)) return version;
        }
        return std::nullopt;
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
