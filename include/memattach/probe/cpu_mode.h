#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/process/maps.h"
#include "memattach/python/layout.h"
#include "memattach/trace/events.h"

namespace memattach::probe {

/// Says whose code an instruction pointer lies in.
class CodeRegions {
  public:
    CodeRegions(int pid, const python::Runtime& runtime);

    /// python: the interpreter's own text, and where its JIT is on (PYTHON_JIT=1, 3.13 and newer) code of no
    /// file. native: any other code in user space: extension modules, the C library, code made at run time.
    [[nodiscard]] trace::CpuMode mode_of(base::Address ip) {
        if (ip >= runtime_.text_start && ip < runtime_.text_end) return trace::CpuMode::python;
        return jit_ && is_made_at_run_time(ip) ? trace::CpuMode::python : trace::CpuMode::native;
    }
    /// Whether code that the JIT made has been seen.
    [[nodiscard]] bool jit_seen() const { return jit_seen_; }

    /// The file that holds `ip`, "[vdso]" and the like, or "" for code of no file. The maps are read again
    /// where `ip` isn't in them, but not more often than ten times a second.
    [[nodiscard]] std::string module_of(base::Address ip);

  private:
    [[nodiscard]] const process::Mapping* mapping_of(base::Address ip);
    [[nodiscard]] bool is_made_at_run_time(base::Address ip);

    int pid_;
    const python::Runtime& runtime_;
    bool jit_ = false;
    bool jit_seen_ = false;
    std::vector<process::Mapping> maps_;
    std::uint64_t maps_read_ns_ = 0;
};

}  // namespace memattach::probe
