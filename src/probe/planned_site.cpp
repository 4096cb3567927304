#include "memattach/probe/planned_site.h"

#include <sys/mman.h>

#include <algorithm>

#include "memattach/base/error.h"

namespace memattach::probe {
namespace {

bool contains(const std::vector<AddressRange>& ranges, std::uint64_t address) {
    const auto above =
        std::upper_bound(ranges.begin(), ranges.end(), base::Address(address),
                         [](base::Address a, const AddressRange& range) { return a < range.start; });
    return above != ranges.begin() && std::prev(above)->contains(base::Address(address));
}

}  // namespace

std::vector<PlannedSite> plan_sites(int pid, const process::Memory& memory, const SiteMap& sites) {
    std::vector<PlannedSite> out;
    for (const Site& site : sites.sites) {
        std::array<std::byte, 96> bytes{};
        const std::size_t got = memory.read_up_to(site.address, bytes);
        const bool skip_null = site.kind == SiteKind::release && site.args.old == Argument::rdi;
        const auto point =
            choose_probe_point(std::span(bytes).first(std::min<std::size_t>(got, 64)), skip_null);
        if (!point) continue;
        PlannedSite planned{site, *point, site.address.value() + point->offset, {}};
        const auto code = std::span(bytes).first(got).subspan(std::min<std::size_t>(point->offset, got));
        std::copy_n(code.begin(), std::min(code.size(), planned.code.size()), planned.code.begin());
        out.push_back(planned);
    }
    if (out.empty()) base::throw_error("no allocation function of process {} can be watched", pid);
    return out;
}

std::uint64_t argument(Argument which, const user_regs_struct& regs) {
    switch (which) {
        case Argument::rdi:
            return regs.rdi;
        case Argument::rsi:
            return regs.rsi;
        case Argument::rdx:
            return regs.rdx;
        case Argument::rcx:
            return regs.rcx;
        case Argument::r8:
            return regs.r8;
        case Argument::r9:
            return regs.r9;
        case Argument::none:
            break;
    }
    return 0;
}

std::optional<std::uint64_t> requested_bytes(const Site& site, const user_regs_struct& regs) {
    std::uint64_t size = argument(site.args.size, regs);
    if (site.args.count != Argument::none &&
        __builtin_mul_overflow(size, argument(site.args.count, regs), &size)) {
        return std::nullopt;
    }
    return size;
}

std::uint64_t own_bytes(const Site& site, std::uint64_t requested) {
    if (site.padding_bytes == 0) return requested;
    return requested > site.padding_bytes ? requested - site.padding_bytes : 1;
}

bool from_inside(const SiteMap& map, const Site& site, std::uint64_t return_address) {
    switch (site.group) {
        case trace::AllocKind::malloc:
        case trace::AllocKind::large:
            return contains(map.inside_malloc, return_address);
        case trace::AllocKind::mmap:
            return contains(map.inside_mmap, return_address);
        case trace::AllocKind::object:
            return contains(map.inside_object, return_address);
    }
    return false;
}

bool is_interpreters_own(const SiteMap& map, const Site& site, const user_regs_struct& regs,
                         std::uint64_t return_address) {
    return site.args.flags != Argument::none && (argument(site.args.flags, regs) & MAP_PRIVATE) != 0 &&
           contains(map.interpreter_text, return_address);
}

bool maps_a_file(const Site& site, const user_regs_struct& regs) {
    return site.args.flags != Argument::none && (argument(site.args.flags, regs) & MAP_ANONYMOUS) == 0;
}

}  // namespace memattach::probe
