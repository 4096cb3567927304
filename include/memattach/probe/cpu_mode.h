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
    CodeRegions(int pid, const python::Runtime& runtime) : pid_(pid), runtime_(runtime) {}

    /// python: the interpreter's own text. native: any other code in user space: extension modules, the C
    /// library, code made at run time.
    [[nodiscard]] trace::CpuMode mode_of(base::Address ip) const {
        return ip >= runtime_.text_start && ip < runtime_.text_end ? trace::CpuMode::python
                                                                   : trace::CpuMode::native;
    }

    /// The file that holds `ip`, "[vdso]" and the like, or "" for code of no file. The maps are read again
    /// where `ip` isn't in them, but not more often than ten times a second.
    [[nodiscard]] std::string module_of(base::Address ip);

  private:
    int pid_;
    const python::Runtime& runtime_;
    std::vector<process::Mapping> maps_;
    std::uint64_t maps_read_ns_ = 0;
};

}  // namespace memattach::probe
