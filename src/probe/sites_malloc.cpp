#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "site_parts.h"

namespace memattach::probe {
namespace {

using trace::AllocKind;

struct Entry {
    std::string_view name;
    SiteKind kind;
    Arguments args;
    /// Only where the allocator itself defines it: elsewhere it calls another of these entries (libstdc++'s
    /// operator new, the C library's reallocarray).
    bool allocators_own = false;
};

constexpr Arguments kSizeFirst{.size = Argument::rdi};
constexpr Arguments kSizeSecond{.size = Argument::rsi};
constexpr Arguments kOldFirst{.old = Argument::rdi};

// Names of <stdlib.h> and <malloc.h>, and of the C++ ABI's operators new and delete (Itanium mangling).
constexpr std::array kEntries = {
    Entry{"malloc", SiteKind::allocate, kSizeFirst},
    Entry{"calloc", SiteKind::allocate, {.size = Argument::rsi, .count = Argument::rdi}},
    Entry{"realloc", SiteKind::reallocate, {.size = Argument::rsi, .old = Argument::rdi}},
    Entry{"reallocarray",
          SiteKind::reallocate,
          {.size = Argument::rdx, .count = Argument::rsi, .old = Argument::rdi},
          true},
    Entry{"posix_memalign", SiteKind::allocate_out, {.size = Argument::rdx, .out = Argument::rdi}},
    Entry{"aligned_alloc", SiteKind::allocate, kSizeSecond},
    Entry{"memalign", SiteKind::allocate, kSizeSecond},
    Entry{"valloc", SiteKind::allocate, kSizeFirst},
    Entry{"pvalloc", SiteKind::allocate, kSizeFirst},
    Entry{"free", SiteKind::release, kOldFirst},
    Entry{"cfree", SiteKind::release, kOldFirst},
    Entry{"free_sized", SiteKind::release, kOldFirst},
    Entry{"free_aligned_sized", SiteKind::release, kOldFirst},
    Entry{"_Znwm", SiteKind::allocate, kSizeFirst, true},
    Entry{"_Znam", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZnwmRKSt9nothrow_t", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZnamRKSt9nothrow_t", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZnwmSt11align_val_t", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZnamSt11align_val_t", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZnwmSt11align_val_tRKSt9nothrow_t", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZnamSt11align_val_tRKSt9nothrow_t", SiteKind::allocate, kSizeFirst, true},
    Entry{"_ZdlPv", SiteKind::release, kOldFirst, true},
    Entry{"_ZdaPv", SiteKind::release, kOldFirst, true},
    Entry{"_ZdlPvm", SiteKind::release, kOldFirst, true},
    Entry{"_ZdaPvm", SiteKind::release, kOldFirst, true},
    Entry{"_ZdlPvRKSt9nothrow_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdaPvRKSt9nothrow_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdlPvSt11align_val_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdaPvSt11align_val_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdlPvmSt11align_val_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdaPvmSt11align_val_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdlPvSt11align_val_tRKSt9nothrow_t", SiteKind::release, kOldFirst, true},
    Entry{"_ZdaPvSt11align_val_tRKSt9nothrow_t", SiteKind::release, kOldFirst, true},
};

constexpr std::array kMappingEntries = {
    Entry{"mmap", SiteKind::allocate, {.size = Argument::rsi, .flags = Argument::rcx}},
    Entry{"mmap64", SiteKind::allocate, {.size = Argument::rsi, .flags = Argument::rcx}},
    Entry{"munmap", SiteKind::release_range, {.size = Argument::rsi, .old = Argument::rdi}},
    Entry{"mremap",
          SiteKind::reallocate_mapping,
          {.size = Argument::rdx, .old = Argument::rdi, .old_size = Argument::rsi}},
};

/// By what only that allocator exports.
std::string name_of_allocator(const Binding& malloc) {
    const auto has = [&](std::string_view symbol) {
        return malloc.loaded != nullptr && malloc.loaded->find(symbol).has_value();
    };
    if (has("mallctl") || has("je_mallctl")) return "jemalloc";
    if (has("tc_malloc") || has("tc_version")) return "tcmalloc";
    if (has("mi_malloc")) return "mimalloc";
    if (has("gnu_get_libc_version")) return "glibc";
    if (malloc.module.find("musl") != std::string::npos || has("__libc_start_main")) return "musl";
    return "malloc of " + base::printable(malloc.module, 200);
}

void add(SiteMap& map, const Entry& entry, const Binding& found, AllocKind group) {
    const bool known = std::any_of(map.sites.begin(), map.sites.end(), [&](const Site& site) {
        return site.address == found.symbol.address;  // aliases: memalign and aligned_alloc, mmap and mmap64
    });
    if (known) return;
    Site site;
    site.address = found.symbol.address;
    site.kind = entry.kind;
    site.group = group;
    site.args = entry.args;
    site.symbol = entry.name;
    site.module = found.module;
    map.sites.push_back(std::move(site));
}

}  // namespace

void add_malloc_sites(const SiteContext& context, SiteMap& map) {
    const auto malloc = context.resolve("malloc");
    if (!malloc || !context.is_executable(malloc->symbol.address))
        base::throw_error("process {} has no malloc that could be found: its memory can't be watched",
                          context.pid);
    map.malloc_name = name_of_allocator(*malloc);
    // A library that does nothing but allocate is inside as a whole. In a C library or an executable other
    // code calls malloc too, and only the bodies of the entries are.
    const bool mixed = map.malloc_name == "glibc" || map.malloc_name == "musl" || malloc->loaded == nullptr ||
                       (!context.modules.empty() && malloc->loaded == &context.modules.front()) ||
                       malloc->module == context.runtime.module_path ||
                       map.malloc_name.starts_with("malloc of");
    const auto own_text = context.text_around(malloc->symbol.address);
    if (!mixed) map.inside_malloc = own_text;
    for (const Entry& entry : kEntries) {
        const auto found = context.resolve(entry.name);
        if (!found || !context.is_executable(found->symbol.address)) continue;
        const bool same_module = found->module == malloc->module;
        // What the C library adds to another's allocator (glibc's pvalloc beside jemalloc) is a site as well.
        if (entry.allocators_own && (!same_module || mixed)) continue;
        add(map, entry, *found, AllocKind::malloc);
        if (!same_module || mixed)
            map.inside_malloc.push_back(
                {found->symbol.address, found->symbol.address + found->symbol.size_bytes});
    }
    map.inside_mmap = own_text;
    for (const Entry& entry : kMappingEntries) {
        const auto found = context.resolve(entry.name);
        if (!found || !context.is_executable(found->symbol.address)) continue;
        add(map, entry, *found, AllocKind::mmap);
        // The C library's own mappings: thread stacks, stdio, and what its malloc takes from the kernel.
        const auto text = context.text_around(found->symbol.address);
        map.inside_mmap.insert(map.inside_mmap.end(), text.begin(), text.end());
    }
    if (const auto libc = context.resolve("gnu_get_libc_version")) {
        const auto text = context.text_around(libc->symbol.address);
        map.inside_mmap.insert(map.inside_mmap.end(), text.begin(), text.end());
    }
}

}  // namespace memattach::probe
