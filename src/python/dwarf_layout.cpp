#include <algorithm>

#include "memattach/elf/dwarf_types.h"
#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

namespace memattach::python {

std::optional<Layout> layout_from_dwarf(const elf::Image& image, const Version& version, std::string& why) {
    // Those that every version has. The others stand in the same headers as one of these.
    const std::vector<std::string> required = {"pyruntimestate",
                                               "_is",
                                               "_ts",
                                               "_frame",
                                               "PyCodeObject",
                                               "_object",
                                               "PyBytesObject",
                                               "PyASCIIObject",
                                               "_typeobject",
                                               "_gc_runtime_state",
                                               "PyCompactUnicodeObject"};
    std::vector<std::string> optional;
    for (const LayoutField& field : layout_fields()) {
        for (const std::string_view name : field.c_names) {
            std::string type(name.substr(0, name.find('.')));
            const auto is_it = [&](const std::string& other) { return other == type; };
            if (!type.empty() && std::none_of(required.begin(), required.end(), is_it) &&
                std::none_of(optional.begin(), optional.end(), is_it))
                optional.push_back(std::move(type));
        }
    }
    // Between them, these include every header that defines one of the types.
    const elf::DwarfTypes dwarf(image, required, optional,
                                {"pystate.c", "ceval.c", "ceval_gil.c", "frameobject.c", "unicodeobject.c"});
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
    apply_version(version, layout);
    if (!is_plausible(layout, why)) {
        why = "its DWARF lacks " + why;
        return std::nullopt;
    }
    return layout;
}

}  // namespace memattach::python
