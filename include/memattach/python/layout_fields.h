/// The offsets of a Layout as a list: one place that names each field, says where it comes from in CPython's
/// sources, and by which structure's size it is bounded. The DWARF reader, the cache, the generator of the
/// built-in tables and the sanity checks all run along it.
#pragma once

#include <array>
#include <span>
#include <string_view>

#include "memattach/python/layout.h"

namespace memattach::python {

struct LayoutField {
    std::string_view name;  ///< "thread.next"
    Offset& (*of)(Layout&);
    /// "struct.member" in C, in order of preference: a version has one of them. A bare struct name is its
    /// size.
    std::array<std::string_view, 3> c_names;
    /// The size that the offset must lie within; nullptr: not known in all sources.
    Offset& (*bound)(Layout&) = nullptr;
};

[[nodiscard]] std::span<const LayoutField> layout_fields();

inline Offset get(const LayoutField& field, const Layout& layout) {
    return field.of(const_cast<Layout&>(layout));  // the accessor only forms a reference
}

}  // namespace memattach::python
