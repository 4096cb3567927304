#include "module.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace memattach::python {
namespace {

constexpr std::size_t kMaxModules = 4096;

int rank(const Module& module, std::string_view exe) {
    if (module.path == exe) return 0;
    return module.base_name().find("libpython") != std::string_view::npos ? 1 : 2;
}

}  // namespace

std::vector<Module> candidate_modules(const std::vector<process::Mapping>& maps, std::string_view exe) {
    std::vector<Module> modules;
    std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>, std::size_t> index_of;
    for (std::size_t i = 0; i < maps.size(); ++i) {
        const process::Mapping& mapping = maps[i];
        if (mapping.inode == 0 || mapping.path.empty() || mapping.path.front() != '/') continue;
        const auto [known, is_new] =
            index_of.try_emplace({mapping.device_major, mapping.device_minor, mapping.inode}, modules.size());
        if (is_new) {
            if (modules.size() == kMaxModules) {
                index_of.erase(known);
                continue;
            }
            modules.push_back({mapping.path, {}, {}});
        }
        Module* module = &modules[known->second];
        module->mappings.push_back(mapping);
        if (!mapping.writable) continue;
        module->data.push_back(mapping);
        if (i + 1 < maps.size() && maps[i + 1].inode == 0 && maps[i + 1].writable &&
            maps[i + 1].start == mapping.end && (maps[i + 1].path.empty() || maps[i + 1].path == "[heap]"))
            module->data.push_back(maps[i + 1]);
    }
    // Only what has code is a module; fonts, locales and memory-mapped data are not.
    std::erase_if(modules, [](const Module& m) {
        return std::none_of(m.mappings.begin(), m.mappings.end(), [](const auto& x) { return x.executable; });
    });
    std::stable_sort(modules.begin(), modules.end(),
                     [&](const Module& a, const Module& b) { return rank(a, exe) < rank(b, exe); });
    return modules;
}

}  // namespace memattach::python
