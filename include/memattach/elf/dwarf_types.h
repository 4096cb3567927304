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
///     DwarfTypes types(image, {"_ts", "PyCodeObject"}, {"_PyCFrame"}, {"pystate.c", "ceval.c"});
///     types.offset_of("_ts", "prev");            // 0
///     types.offset_of("pyruntimestate", "interpreters.head");
///
/// Types are looked for by their tag or their typedef's name, in the compilation units whose source file's
/// base name is in `units`. Only while one of `required` hasn't been found are the other units read too, so
/// those in `optional` should be defined where a required one is.
class DwarfTypes {
  public:
    DwarfTypes(const Image& image, const std::vector<std::string>& required,
               const std::vector<std::string>& optional, const std::vector<std::string>& units);
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
