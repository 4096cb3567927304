#include <algorithm>

#include "memattach/elf/dwarf_types.h"
#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

namespace memattach::python {

std::optional<Layout> layout_from_dwarf(const elf::Image& image, const Version& version, std::string& why) {
    std::vector<std::string> types;
    for (const LayoutField& field : layout_fields()) {
        for (const std::string_view name : field.c_names) {
            std::string type(name.substr(0, name.find('.')));
            if (!type.empty() && std::find(types.begin(), types.end(), type) == types.end())
                types.push_back(std::move(type));
        }
    }
    // Between them, these include every header that defines one of the types.
    const elf::DwarfTypes dwarf(image, std::move(types),
                                {"pystate.c", "ceval.c", "frameobject.c", "unicodeobject.c"});
    if (!dwarf.has_debug_info()) {
        why = "it has no DWARF";
        return std::nullopt;
    }
    Layout layout;
    for (const LayoutField& field : layout_fields()) {
        for (const std::string_view name : field.c_names) {
            if (name.empty()) continue;
            const std::size_t dot = name.find('.');
            const auto value = dot == std::string_view::npos
                                   ? dwarf.size_of(name)
                                   : dwarf.offset_of(name.substr(0, dot), name.substr(dot + 1));
            if (!value || *value >= kAbsent) continue;
            field.of(layout) = static_cast<Offset>(*value);
            break;
        }
    }
    // 3.10 has a cframe too, but its current frame is still in the thread state.
    if (layout.thread.frame != kAbsent) layout.thread.cframe = kAbsent;
    apply_version(version, layout.code.tlbc != kAbsent, layout);
    if (!is_plausible(layout, why)) {
        why = "its DWARF lacks " + why;
        return std::nullopt;
    }
    return layout;
}

}  // namespace memattach::python
