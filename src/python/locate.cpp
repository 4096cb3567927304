#include "locate.h"

#include <fmt/format.h>

#include <algorithm>

#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"
#include "memattach/python/layout_sources.h"
#include "version_text.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxScanBytes = 8 << 20;  ///< of one writable mapping

bool locate_runtime(Interpreter& interpreter) {
    if (const auto symbol = interpreter.image->find_symbol("_PyRuntime")) {
        interpreter.runtime = base::Address(interpreter.bias + symbol->value);
        interpreter.found_by =
            fmt::format("symbol _PyRuntime in {} of {}", symbol->table, interpreter.module.path);
        return true;
    }
    if (const auto section = interpreter.image->find_section(".PyRuntime")) {
        interpreter.runtime = base::Address(interpreter.bias + section->address);
        interpreter.found_by = fmt::format("section .PyRuntime of {}", interpreter.module.path);
        return true;
    }
    return false;
}

}  // namespace

std::optional<base::Address> Interpreter::find_symbol(std::string_view name) const {
    const auto symbol = image ? image->find_symbol(name) : std::nullopt;
    if (!symbol) return std::nullopt;
    return base::Address(bias + symbol->value);
}

Located locate_interpreter(int pid, const process::Memory& /*memory*/) {
    Located located;
    const std::string exe = process::read_link(fmt::format("/proc/{}/exe", pid)).value_or("");
    for (Module& module : candidate_modules(process::read_maps(pid), exe)) {
        if (const auto version = version_in_name(module.base_name()); version && version->minor < 8)
            located.old_version = version;
        std::string reason;
        auto file = process::open_mapped_file(pid, module.mappings.front(), reason);
        if (!file.is_open()) {
            if (located.unopened.empty()) located.unopened = reason;
            continue;
        }
        Interpreter interpreter;
        interpreter.image = elf::Image::open(std::move(file));
        const auto bias = interpreter.image ? interpreter.image->load_bias(module.mappings) : std::nullopt;
        if (!bias) continue;
        interpreter.bias = *bias;
        interpreter.module = std::move(module);
        if (!locate_runtime(interpreter)) continue;
        located.interpreter = std::move(interpreter);
        return located;
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
        std::string_view(head.cookie.data(), head.cookie.size()) == "xdebugpy")
        return version_from_hex(static_cast<std::uint32_t>(head.hex));
    // const unsigned long Py_Version, 3.11+ (Include/pylifecycle.h)
    if (const auto address = interpreter.find_symbol("Py_Version")) {
        const auto value = memory.read<std::uint64_t>(*address);
        if (value && *value >> 24 == 3) return version_from_hex(static_cast<std::uint32_t>(*value));
    }
    for (const process::Mapping& mapping : interpreter.module.data) {
        std::string bytes(std::min<std::uint64_t>(mapping.size_bytes(), kMaxScanBytes), '\0');
        bytes.resize(memory.read_up_to(mapping.start, std::as_writable_bytes(std::span(bytes))));
        if (const auto version = find_version_text(bytes)) return version;
    }
    return std::nullopt;
}

}  // namespace memattach::python
