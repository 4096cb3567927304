/// Native call stacks of another process, unwound with its ELF files' call frame information (libdw) from
/// registers and stack bytes that were taken at one moment. The process needn't be stopped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/probe/perf_record.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

class NativeUnwinder {
  public:
    NativeUnwinder(int pid, const process::Memory& memory);
    ~NativeUnwinder();
    NativeUnwinder(const NativeUnwinder&) = delete;
    NativeUnwinder& operator=(const NativeUnwinder&) = delete;

    /// Instruction addresses, innermost first; of the callers those within the call instruction, so that they
    /// belong to the calling function. At most kMaxNativeFrames. `stack` holds the bytes from the stack
    /// pointer up; what lies beyond is read from the process as it is now.
    [[nodiscard]] std::vector<base::Address> unwind(
        const std::array<std::uint64_t, kPerfRegisterCount>& registers, std::span<const std::byte> stack);

    struct Symbol {
        std::string name;    ///< demangled; empty where no symbol covers it
        std::string module;  ///< path as the target has it
    };
    [[nodiscard]] Symbol symbol_at(base::Address address);
    /// Where the module that holds `address` has its unwind tables' header (PT_GNU_EH_FRAME), once some stack
    /// has been unwound.
    [[nodiscard]] std::optional<base::Address> eh_frame_header(base::Address address);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

inline constexpr std::size_t kMaxNativeFrames = 512;

}  // namespace memattach::probe
