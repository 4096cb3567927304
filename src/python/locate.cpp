#include "locate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"
#include "memattach/python/layout_sources.h"
#include "structure_scan.h"
#include "version_text.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxScanBytes = 8 << 20;  ///< of one writable mapping
constexpr std::string_view kCookie = "xdebugpy";

std::string read_data(const process::Memory& memory, const process::Mapping& mapping) {
    std::string bytes(std::min<std::uint64_t>(mapping.size_bytes(), kMaxScanBytes), '\0');
    bytes.resize(memory.read_up_to(mapping.start, std::as_writable_bytes(std::span(bytes))));
    return bytes;
}

bool is_32_bit(const process::Memory& memory, const Module& module) {
    const auto identification = memory.read<std::array<char, 5>>(module.mappings.front().start);
    return identification == std::array<char, 5>{'\x7f', 'E', 'L', 'F', 1};
}

/// Looks at one module, from its file where that can be had and else from its memory.
class ModuleSearch {
  public:
    ModuleSearch(int pid, const process::Memory& memory, const std::vector<process::Mapping>& maps,
                 Module module, bool likely)
        : memory_(memory), maps_(maps), likely_(likely) {
        found_.module = std::move(module);
        const process::Mapping& first = found_.module.mappings.front();
        if (first.file_offset == 0) found_.memory_image = elf::MemoryImage::read(memory, first.start);
        process::MappedFile file = process::open_mapped_file(pid, first);
        unopened = file.why;
        if (!file.fd.is_open()) return;
        auto image = elf::Image::open(std::move(file.fd));
        if (!image) return;
        const std::string loaded = found_.memory_image ? found_.memory_image->build_id() : "";
        if (loaded != image->build_id() && (!file.certain || !loaded.empty())) {
            unopened = fmt::format("{} is not the file that is loaded", found_.module.path);
            return;
        }
        found_.image = std::move(image);
    }

    std::optional<Interpreter> find() {
        const auto bias = found_.image ? found_.image->load_bias(found_.module.mappings) : std::nullopt;
        if (bias) {
            found_.bias = *bias;
        } else if (found_.memory_image) {
            found_.bias = found_.memory_image->bias();
        } else {
            return std::nullopt;
        }
        if (by_file_symbol() || by_section() || by_memory_symbol() || by_cookie() || by_structure())
            return std::move(found_);
        return std::nullopt;
    }

    std::string unopened;
    std::optional<Version> version_without_runtime;  ///< the module is Python, and nothing led to _PyRuntime

  private:
    bool by_file_symbol() {
        const auto symbol = found_.image ? found_.image->find_symbol("_PyRuntime") : std::nullopt;
        if (!symbol) return false;
        return accept(base::Address(found_.bias + symbol->value),
                      fmt::format("symbol _PyRuntime in {}", symbol->table));
    }
    bool by_section() {  // 3.13+, see Include/internal/pycore_debug_offsets.h; survives strip
        const auto section = found_.image ? found_.image->find_section(".PyRuntime") : std::nullopt;
        return section && accept(base::Address(found_.bias + section->address), "section .PyRuntime");
    }
    bool by_memory_symbol() {
        if (found_.image || !found_.memory_image) return false;
        const auto address = found_.memory_image->find_symbol("_PyRuntime");
        return address && accept(*address, "symbol _PyRuntime in the memory");
    }
    /// The last resort for 3.13+: the debug offsets' cookie in what the module may write to. Only in likely
    /// modules, or every process's memory would be read through for nothing.
    bool by_cookie() {
        if (!likely_) return false;
        for (const process::Mapping& mapping : found_.module.data) {
            const std::string bytes = read_data(memory_, mapping);
            for (std::size_t at = 0; (at = bytes.find(kCookie, at)) != std::string::npos;
                 at += kCookie.size()) {
                std::string why;
                const auto rest = std::as_bytes(std::span(bytes)).subspan(at);
                if (at % 8 == 0 && parse_debug_offsets(rest, why))
                    return accept(mapping.start + at, "the debug offsets' cookie in the data");
            }
        }
        return false;
    }
    /// The same for 3.8 to 3.12, in modules that hold the text of Py_GetVersion.
    bool by_structure() {
        if (!likely_) return false;
        for (const process::Mapping& mapping : found_.module.data) {
            version_without_runtime = find_version_text(read_data(memory_, mapping));
            if (version_without_runtime) break;
        }
        if (!version_without_runtime || version_without_runtime->major != 3) return false;
        for (const BuiltInLayout& table : built_in_layouts()) {
            if (table.version.minor != version_without_runtime->minor) continue;
            Layout layout = table.layout;
            apply_version(*version_without_runtime, layout);
            const auto runtime = find_runtime_by_structure(memory_, found_.module, maps_, layout);
            if (runtime) return accept(*runtime, "the list of interpreters in the data");
        }
        return false;
    }
    bool accept(base::Address runtime, const std::string& how) {
        found_.runtime = runtime;
        found_.found_by = fmt::format("{} of {}", how, found_.module.path);
        return true;
    }

    const process::Memory& memory_;
    const std::vector<process::Mapping>& maps_;
    bool likely_;
    Interpreter found_;
};

}  // namespace

std::optional<base::Address> Interpreter::find_symbol(std::string_view name) const {
    if (image) {
        const auto symbol = image->find_symbol(name);
        return symbol ? std::optional(base::Address(bias + symbol->value)) : std::nullopt;
    }
    return memory_image ? memory_image->find_symbol(name) : std::nullopt;
}

std::string Interpreter::build_id() const {
    return image ? image->build_id() : memory_image ? memory_image->build_id() : "";
}

Located locate_interpreters(int pid, const process::Memory& memory) {
    Located located;
    std::string exe = process::read_link(fmt::format("/proc/{}/exe", pid)).value_or("");
    if (constexpr std::string_view kDeleted = " (deleted)"; exe.ends_with(kDeleted))
        exe.resize(exe.size() - kDeleted.size());  // as maps.h has it
    const std::vector<process::Mapping> maps = process::read_maps(pid);
    for (Module& module : candidate_modules(maps, exe)) {
        // Once there is one, only likely places for a second are looked at.
        const bool named_so = module.base_name().find("python") != std::string_view::npos;
        if (!located.interpreters.empty() && !named_so) break;
        const auto version = version_in_name(module.base_name());
        if (version && (version->major < 3 || version->minor < 7)) located.old_version = version;
        if (module.path == exe && is_32_bit(memory, module))
            located.other = "is a 32-bit program, and memattach reads 64-bit ones";
        if (module.base_name().find("pypy") != std::string_view::npos)
            located.other = "runs PyPy, and memattach reads CPython";
        const bool likely = named_so || module.path == exe;
        module.path = process::path_in_target(pid, module.path);
        ModuleSearch search(pid, memory, maps, std::move(module), likely);
        if (auto interpreter = search.find()) {
            located.interpreters.push_back(std::move(*interpreter));
            continue;
        }
        if (located.unopened.empty()) located.unopened = search.unopened;
        if (const auto& seen = search.version_without_runtime) {
            located.may_appear = true;
            located.other = fmt::format(
                "has Python {}.{}.{} linked in without a symbol for its runtime, which can't be found while "
                "no "
                "thread runs Python code",
                seen->major, seen->minor, seen->micro);
            if (seen->major < 3 || seen->minor < 8) located.old_version = seen;
        }
    }
    return located;
}

std::optional<Version> find_version(const Interpreter& interpreter, const process::Memory& memory) {
    // Since 3.13 the runtime begins with it: cookie, version.
    struct {
        std::array<char, 8> cookie;
        std::uint64_t hex;
    } head{};
    if (memory.read_exactly(interpreter.runtime, std::as_writable_bytes(std::span(&head, 1))) &&
        std::string_view(head.cookie.data(), head.cookie.size()) == kCookie)
        return version_from_hex(static_cast<std::uint32_t>(head.hex));
    // const unsigned long Py_Version, 3.11+ (Include/pylifecycle.h)
    if (const auto address = interpreter.find_symbol("Py_Version")) {
        const auto value = memory.read<std::uint64_t>(*address);
        if (value && *value >> 24 == 3) return version_from_hex(static_cast<std::uint32_t>(*value));
    }
    for (const process::Mapping& mapping : interpreter.module.data)
        if (const auto version = find_version_text(read_data(memory, mapping))) return version;
    return std::nullopt;
}

}  // namespace memattach::python
