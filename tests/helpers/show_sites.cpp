/// show_sites PID [no-python]: what find_sites() says, as `name value` lines; an Error on standard error with
/// its exit code. no-python: of any program, for its C library's part.
#include <fmt/format.h>

#include <cstdlib>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/probe/sites.h"
#include "memattach/python/finder.h"

int main(int argc, char** argv) {
    using namespace memattach;
    if (argc < 2) return 2;
    const int pid = std::atoi(argv[1]);
    const process::LiveMemory memory(pid);
    constexpr std::string_view kKinds[] = {"allocate",           "allocate_out", "reallocate",
                                           "reallocate_mapping", "release",      "release_range"};
    constexpr std::string_view kGroups[] = {"malloc", "object", "mmap"};
    try {
        const python::Runtime runtime = argc > 2 ? python::Runtime() : python::find_runtime(pid, memory);
        const std::uint64_t begin_ns = base::monotonic_ns();
        const probe::SiteMap map = probe::find_sites(pid, memory, runtime);
        const double took_ms = static_cast<double>(base::monotonic_ns() - begin_ns) / 1e6;
        fmt::print("malloc {}\nobject {}\ntook_ms {:.1f}\n", map.malloc_name, map.object_name, took_ms);
        for (const probe::Site& site : map.sites) {
            fmt::print("site {} {} {} {:#x} limit={} padding={} {}\n", kGroups[static_cast<int>(site.group)],
                       site.symbol, kKinds[static_cast<int>(site.kind)], site.address.value(),
                       site.limit_bytes, site.padding_bytes, site.module);
        }
        for (const probe::Redirect& r : map.redirects)
            fmt::print("redirect {:#x} {:#x} {:#x}\n", r.slot.value(), r.original, r.alias);
        const auto ranges = [](std::string_view name, const std::vector<probe::AddressRange>& all) {
            for (const probe::AddressRange& range : all)
                fmt::print("{} {:#x}-{:#x}\n", name, range.start.value(), range.end.value());
        };
        ranges("inside_malloc", map.inside_malloc);
        ranges("inside_object", map.inside_object);
        ranges("inside_mmap", map.inside_mmap);
        ranges("interpreter_text", map.interpreter_text);
        for (const std::string& note : map.notes) fmt::print("note {}\n", note);
        return 0;
    } catch (const base::Error& error) {
        fmt::print(stderr, "{}\n", error.what());
        return static_cast<int>(error.code());
    }
}
