/// Writes the built-in tables: src/python/built_in_layouts.cpp.
///
///     gen-layouts 3.8.18=$HOME/.pyenv/versions/3.8.18/lib/libpython3.8.so.1.0 …
///     >src/python/built_in_layouts.cpp
///
/// Each file must be a CPython build with DWARF. What a table says is what that build's compiler said; the
/// version and the build id are written beside it.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <regex>

#include "memattach/base/error.h"
#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

namespace memattach {
namespace {

python::Version parse_version(const std::string& text) {
    std::smatch parts;
    if (!std::regex_match(text, parts, std::regex("3\\.([0-9]+)\\.([0-9]+)")))
        base::throw_error("{} is not a final release of Python 3", text);
    const int minor = std::stoi(parts[1]);
    const int micro = std::stoi(parts[2]);
    return {3, minor, micro, static_cast<std::uint32_t>(3 << 24 | minor << 16 | micro << 8 | 0xF0)};
}

std::string table(const std::string& argument, std::string& row) {
    const std::size_t equals = std::min(argument.find('='), argument.size());
    const python::Version version = parse_version(argument.substr(0, equals));
    const std::string path = argument.substr(std::min(equals + 1, argument.size()));
    const auto image = elf::Image::open(base::UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)));
    if (!image) base::throw_error("{} is not an x86-64 ELF file", path);
    std::string why;
    const auto layout = python::layout_from_dwarf(*image, version, why);
    if (!layout) base::throw_error("{}: {}", path, why);
    const bool free_threaded = layout->code.tlbc != python::kAbsent;

    const std::string function =
        fmt::format("layout_{}_{}{}", version.major, version.minor, free_threaded ? "t" : "");
    std::string text = fmt::format("constexpr Layout {}() {{\n    Layout l;\n", function);
    for (const python::LayoutField& field : python::layout_fields()) {
        const python::Offset offset = python::get(field, *layout);
        if (offset != python::kAbsent) text += fmt::format("    l.{} = {};\n", field.name, offset);
    }
    row = fmt::format("    {{{{{}, {}, {}, 0x{:08x}}}, {}, \"{}\", \"{}\", {}()}},\n", version.major,
                      version.minor, version.micro, version.hex, free_threaded, image->build_id(),
                      path.substr(path.rfind('/') + 1), function);
    return text + "    return l;\n}\n\n";
}

int run(int argc, char** argv) {
    std::string functions;
    std::string rows;
    for (int i = 1; i < argc; ++i) {
        std::string row;
        functions += table(argv[i], row);
        rows += row;
    }
    fmt::print(
        "// Written by tools/gen-layouts from the DWARF of the builds named in kTables. Don't edit.\n"
        "// clang-format off\n"
        "#include <array>\n\n"
        "#include \"memattach/python/layout_sources.h\"\n\n"
        "namespace memattach::python {{\n"
        "namespace {{\n\n{}"
        "constexpr std::array<BuiltInLayout, {}> kTables = {{{{\n"
        "    // version, free-threaded, build id, file\n{}}}}};\n\n"
        "}}  // namespace\n\n"
        "std::span<const BuiltInLayout> built_in_layouts() {{ return kTables; }}\n\n"
        "}}  // namespace memattach::python\n",
        functions, argc - 1, rows);
    return 0;
}

}  // namespace
}  // namespace memattach

int main(int argc, char** argv) {
    try {
        return memattach::run(argc, argv);
    } catch (const std::exception& error) {
        fmt::print(stderr, "gen-layouts: {}\n", error.what());
        return 2;
    }
}
