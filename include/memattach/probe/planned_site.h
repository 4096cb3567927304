#pragma once

#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "memattach/probe/emulate.h"
#include "memattach/probe/sites.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

/// A site, and where and how it is watched.
struct PlannedSite {
    Site site;
    ProbePoint point;
    std::uint64_t address = 0;         ///< where the breakpoint goes
    std::array<std::byte, 48> code{};  ///< what stands there
};

/// Before anything is armed. Sites that can't be watched are left out; throws base::Error where none can.
std::vector<PlannedSite> plan_sites(int pid, const process::Memory& memory, const SiteMap& sites);

/// At a site's probe point: the registers still hold the arguments.
[[nodiscard]] std::uint64_t argument(Argument which, const user_regs_struct& regs);
/// What was asked for, or nothing where the product overflows (the call will fail).
[[nodiscard]] std::optional<std::uint64_t> requested_bytes(const Site& site, const user_regs_struct& regs);
/// What of it is the program's own: without what a debug hook added.
[[nodiscard]] std::uint64_t own_bytes(const Site& site, std::uint64_t requested);
/// Whether a hit that returns to `return_address` is a part of a call that is counted elsewhere.
[[nodiscard]] bool from_inside(const SiteMap& map, const Site& site, std::uint64_t return_address);
/// The interpreter's own mapping, by where it was asked for and how.
[[nodiscard]] bool is_interpreters_own(const SiteMap& map, const Site& site, const user_regs_struct& regs,
                                       std::uint64_t return_address);
/// A file's pages are not memory asked for.
[[nodiscard]] bool maps_a_file(const Site& site, const user_regs_struct& regs);

/// A result in the last page is an error number: −MAX_ERRNO … −1.
inline constexpr std::uint64_t kFirstErrorResult = ~std::uint64_t{0} - 4095;

}  // namespace memattach::probe
