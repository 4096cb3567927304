/// The two halves of find_sites().
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/probe/sites.h"
#include "memattach/process/maps.h"
#include "remote_module.h"

namespace memattach::probe {

/// A symbol as the program would bind it: the first module in lookup order that defines it.
struct Binding {
    RemoteSymbol symbol;
    std::string module;
    const RemoteModule* loaded = nullptr;  ///< nothing for a static executable
};
using Resolve = std::function<std::optional<Binding>(std::string_view)>;

struct SiteContext {
    int pid;
    const process::Memory& memory;
    const python::Runtime& runtime;
    const std::vector<process::Mapping>& maps;
    const std::vector<RemoteModule>& modules;
    Resolve resolve;

    [[nodiscard]] bool is_executable(base::Address a) const {
        const process::Mapping* mapping = process::find_mapping(maps, a);
        return mapping != nullptr && mapping->executable;
    }
    /// The executable mappings of the file that `a` lies in.
    [[nodiscard]] std::vector<AddressRange> text_around(base::Address a) const;
};

/// Adds the malloc and mmap groups. Throws base::Error where there is no malloc.
void add_malloc_sites(const SiteContext& context, SiteMap& map);

/// Adds the object group, or a note that says why small objects can't be seen.
void add_object_sites(const SiteContext& context, SiteMap& map);

/// Where the function that starts at `start` ends, by the unwind table of its module (.eh_frame_hdr), which
/// stripped files have too: the next function's start. Nothing where there is no such table.
std::optional<base::Address> function_end(const SiteContext& context, base::Address start);

/// The four bytes that mark a target of indirect branches (Intel CET); a no-op.
[[nodiscard]] bool starts_with_endbr64(const process::Memory& memory, base::Address a);

}  // namespace memattach::probe
