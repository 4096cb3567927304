#include "memattach/probe/sites.h"

#include <algorithm>

#include "memattach/base/error.h"
#include "memattach/elf/image.h"
#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"
#include "site_parts.h"

namespace memattach::probe {
namespace {

/// Sorted and without overlaps, as SiteMap promises.
void tidy(std::vector<AddressRange>& ranges) {
    std::erase_if(ranges, [](const AddressRange& r) { return r.start >= r.end; });
    std::sort(ranges.begin(), ranges.end(),
              [](const AddressRange& a, const AddressRange& b) { return a.start < b.start; });
    std::vector<AddressRange> merged;
    for (const AddressRange& range : ranges) {
        if (!merged.empty() && range.start <= merged.back().end) {
            merged.back().end = std::max(merged.back().end, range.end);
        } else {
            merged.push_back(range);
        }
    }
    ranges = std::move(merged);
}

/// A static executable has no dynamic symbols: its file's own table says where malloc is, if it has one.
std::optional<elf::Image> open_static(int pid, const std::vector<process::Mapping>& maps,
                                      const std::string& path, std::uint64_t& bias) {
    std::vector<process::Mapping> own;
    std::copy_if(maps.begin(), maps.end(), std::back_inserter(own),
                 [&](const process::Mapping& m) { return m.inode != 0 && m.path == path; });
    if (own.empty()) return std::nullopt;
    auto image = elf::Image::open(process::open_mapped_file(pid, own.front()).fd);
    if (!image) return std::nullopt;
    const auto found = image->load_bias(own);
    if (!found) return std::nullopt;
    bias = *found;
    return image;
}

}  // namespace

std::vector<AddressRange> SiteContext::text_around(base::Address a) const {
    std::vector<AddressRange> ranges;
    const process::Mapping* home = process::find_mapping(maps, a);
    if (home == nullptr) return ranges;
    for (const process::Mapping& mapping : maps) {
        if (mapping.executable && (&mapping == home || mapping.same_file(*home)))
            ranges.push_back({mapping.start, mapping.end});
    }
    return ranges;
}

SiteMap find_sites(int pid, const process::Memory& memory, const python::Runtime& runtime) {
    const std::vector<process::Mapping> maps = process::read_maps(pid);
    const std::string exe = process::read_link("/proc/" + std::to_string(pid) + "/exe").value_or("");
    const std::vector<RemoteModule> modules = loaded_modules(pid, memory, exe);
    std::optional<elf::Image> image;
    std::uint64_t bias = 0;
    if (modules.empty()) image = open_static(pid, maps, runtime.module_path, bias);
    const Resolve resolve = [&](std::string_view name) -> std::optional<Binding> {
        for (const RemoteModule& module : modules) {
            if (const auto symbol = module.find(name)) return Binding{*symbol, module.path(), &module};
        }
        if (image) {
            if (const auto symbol = image->find_symbol(name))
                return Binding{
                    {base::Address(symbol->value + bias), symbol->size_bytes}, runtime.module_path, nullptr};
        }
        return std::nullopt;
    };
    const SiteContext context{pid, memory, runtime, maps, modules, resolve};
    SiteMap map;
    add_malloc_sites(context, map);
    add_object_sites(context, map);
    for (auto* ranges : {&map.inside_malloc, &map.inside_object, &map.inside_mmap, &map.interpreter_text})
        tidy(*ranges);
    return map;
}

}  // namespace memattach::probe
