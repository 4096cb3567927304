#include "memattach/probe/cpu_mode.h"

#include <string>

#include "memattach/base/clock.h"
#include "memattach/process/proc.h"

namespace memattach::probe {
namespace {

/// PYTHON_JIT, Doc/using/cmdline.rst, 3.13+: on unless it is "0".
bool asks_for_jit(int pid) {
    const std::string value = process::read_variable(pid, "PYTHON_JIT").value_or("");
    return !value.empty() && value != "0";
}

}  // namespace

CodeRegions::CodeRegions(int pid, const python::Runtime& runtime)
    : pid_(pid), runtime_(runtime), jit_(runtime.version.minor >= 13 && asks_for_jit(pid)) {}

const process::Mapping* CodeRegions::mapping_of(base::Address ip) {
    constexpr std::uint64_t kMapsAgeNs = 100'000'000;
    const process::Mapping* mapping = process::find_mapping(maps_, ip);
    if (mapping != nullptr) return mapping;
    const std::uint64_t now = base::monotonic_ns();
    if (maps_read_ns_ != 0 && now - maps_read_ns_ <= kMapsAgeNs) return nullptr;
    maps_read_ns_ = now;
    if (const auto text = process::read_proc(pid_, "maps")) maps_ = process::parse_maps(*text);
    return process::find_mapping(maps_, ip);
}

std::string CodeRegions::module_of(base::Address ip) {
    const process::Mapping* mapping = mapping_of(ip);
    return mapping == nullptr ? std::string() : mapping->path;
}

bool CodeRegions::is_made_at_run_time(base::Address ip) {
    const process::Mapping* mapping = mapping_of(ip);
    // Not yet among those read, and not read again so soon: each executor has pages of its own, files' code
    // hardly ever comes anew.
    const bool made = mapping == nullptr || (mapping->inode == 0 && mapping->path.empty());
    jit_seen_ |= made;
    return made;
}

}  // namespace memattach::probe
