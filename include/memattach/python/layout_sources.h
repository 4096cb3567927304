/// Where a Layout can come from. Each source gives what it knows or says, in one clause, why it can't; none
/// of them is believed before it has been checked against the target (python/sanity.h).
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "memattach/elf/image.h"
#include "memattach/python/layout.h"

namespace memattach::python {

/// Whether every offset that walking stacks needs is there, and all are within their structures. Otherwise
/// `why` names the first that isn't.
bool is_plausible(const Layout& layout, std::string& why);

/// What depends on the version alone: encodings and enumerators. `layout` keeps its offsets.
void apply_version(const Version& version, Layout& layout);

/// How many bytes from the start of _PyRuntime on parse_debug_offsets can make use of.
inline constexpr std::size_t kDebugOffsetsBytes = 1024;

struct DebugOffsets {
    Version version;
    bool free_threaded = false;
    Layout layout;
    bool known_shape = true;  ///< false: a minor version newer than all known ones, read as the newest
};

/// The version in PY_VERSION_HEX's form.
Version version_from_hex(std::uint32_t hex);

/// "3.15": the newest version whose debug offsets are known.
std::string newest_known_version();

/// Reads struct _Py_DebugOffsets, the first member of _PyRuntime since 3.13. Nothing where `bytes` doesn't
/// start with one or where its offsets make no sense; `why` then says so in one clause.
std::optional<DebugOffsets> parse_debug_offsets(std::span<const std::byte> bytes, std::string& why);

/// From the file's DWARF, or nothing where it has none or not the types.
std::optional<Layout> layout_from_dwarf(const elf::Image& image, const Version& version, std::string& why);

struct BuiltInLayout {
    Version version;
    bool free_threaded = false;
    std::string_view build_id;  ///< of the build that it was read from
    std::string_view build;     ///< its file
    Layout layout;
};

/// The tables that tools/gen-layouts made, oldest version first.
std::span<const BuiltInLayout> built_in_layouts();

}  // namespace memattach::python
