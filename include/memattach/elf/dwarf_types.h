#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "memattach/elf/image.h"

namespace memattach::elf {

/// The sizes, member offsets and enumerators of C types, from a file's DWARF.
///
///     DwarfTypes types(image, {"_ts", "PyCodeObject"}, {"pystate.c", "ceval.c"});
///     types.offset_of("_ts", "prev");            // 0
///     types.offset_of("pyruntimestate", "interpreters.head");
///
/// Types are looked for by their tag or their typedef's name, first in the compilation units whose source
/// file's base name is in `units`, then in all the others; reading stops when each has been found once.
class DwarfTypes {
  public:
    DwarfTypes(const Image& image, std::vector<std::string> types, std::vector<std::string> units);
    ~DwarfTypes();
    DwarfTypes(const DwarfTypes&) = delete;
    DwarfTypes& operator=(const DwarfTypes&) = delete;

    [[nodiscard]] bool has_debug_info() const;
    [[nodiscard]] std::optional<std::uint64_t> size_of(std::string_view type) const;
    /// `member` may lead through nested structures: "interpreters.head". Anonymous members are looked into.
    [[nodiscard]] std::optional<std::uint64_t> offset_of(std::string_view type,
                                                         std::string_view member) const;
    [[nodiscard]] std::optional<std::uint64_t> enumerator(std::string_view enumeration,
                                                          std::string_view name) const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace memattach::elf
