/// show_runtime PID [WAIT_MS]: what find_runtime() says, as `name value` lines; an Error on standard error
/// with its exit code.
#include <fmt/format.h>

#include <cstdlib>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/python/finder.h"
#include "memattach/python/layout_fields.h"

int main(int argc, char** argv) {
    using namespace memattach;
    if (argc < 2) return 2;
    const int pid = std::atoi(argv[1]);
    const process::LiveMemory memory(pid);
    python::FindOptions options;
    if (argc > 2) options.startup_wait = std::chrono::milliseconds(std::atoi(argv[2]));
    try {
        const std::uint64_t begin_ns = base::monotonic_ns();
        const python::Runtime r = python::find_runtime(pid, memory, options);
        const double took_ms = static_cast<double>(base::monotonic_ns() - begin_ns) / 1e6;
        constexpr std::string_view kSources[] = {"debug_offsets", "dwarf", "dwarf_cache", "built_in"};
        fmt::print(
            "version {}.{}.{}\nhex {:#010x}\nfree_threaded {}\naddress {:#x}\nmodule {}\nbuild_id {}\n",
            r.version.major, r.version.minor, r.version.micro, r.version.hex, r.free_threaded,
            r.address.value(), r.module_path, r.build_id);
        fmt::print("text {:#x}-{:#x}\nsource {}\nfound_by {}\ntook_ms {:.1f}\n", r.text_start.value(),
                   r.text_end.value(), kSources[static_cast<int>(r.layout_source)], r.found_by, took_ms);
        for (const python::LayoutField& field : python::layout_fields()) {
            const python::Offset offset = python::get(field, r.layout);
            if (offset != python::kAbsent) fmt::print("layout.{} {}\n", field.name, offset);
        }
        return 0;
    } catch (const base::Error& error) {
        fmt::print(stderr, "{}\n", error.what());
        return static_cast<int>(error.code());
    }
}
