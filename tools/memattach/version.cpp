#include <elfutils/version.h>
#include <fmt/format.h>

#include "command_line.h"

namespace memattach::cli {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

}  // namespace

std::string version_text() {
    std::string facts =
        fmt::format("{}, {}, elfutils 0.{}, fmt {}.{}.{}", MEMATTACH_BUILD_TYPE, kCompiler, _ELFUTILS_VERSION,
                    FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
#ifdef MEMATTACH_STATIC
    facts += ", static";
#endif
    if (const std::string sanitizers = MEMATTACH_SANITIZERS; !sanitizers.empty()) {
        facts += ", sanitizers " + sanitizers;
    }
    return fmt::format("memattach {} (x86-64 Linux; {})", MEMATTACH_VERSION, facts);
}

}  // namespace memattach::cli
