#include <elfutils/version.h>
#include <fmt/format.h>
#include <link.h>

#include <cstddef>

#include "command_line.h"

namespace memattach::cli {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

// Whether this program was linked statically: then its own headers, the first ones told, ask for no
// interpreter.
bool linked_statically() {
    const auto first = [](dl_phdr_info* info, std::size_t, void* interpreter) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type == PT_INTERP) {
                *static_cast<bool*>(interpreter) = true;
            }
        }
        return 1;
    };
    bool interpreter = false;
    dl_iterate_phdr(first, &interpreter);
    return !interpreter;
}

}  // namespace

std::string version_text() {
    std::string facts =
        fmt::format("{}, {}, elfutils 0.{}, fmt {}.{}.{}", MEMATTACH_BUILD_TYPE, kCompiler, _ELFUTILS_VERSION,
                    FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
    if (linked_statically()) {
        facts += ", static";
    }
    if (const std::string sanitizers = MEMATTACH_SANITIZERS; !sanitizers.empty()) {
        facts += ", sanitizers " + sanitizers;
    }
    return fmt::format("memattach {} (x86-64 Linux; {})", MEMATTACH_VERSION, facts);
}

}  // namespace memattach::cli
