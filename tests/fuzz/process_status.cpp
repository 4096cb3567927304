#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "memattach/process/proc.h"

/// The parsers of /proc's texts take anything; the command name in `stat` is the target's own choice.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    (void)process::parse_stat(text);
    if (const auto status = process::parse_status(text); status && status->namespace_tids.empty())
        std::abort();
    (void)process::parse_schedstat(text);
    for (const std::string& argument : process::parse_cmdline(text))
        if (argument.find('\0') != std::string::npos) std::abort();
    return 0;
}
