#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "memattach/python/layout.h"

namespace memattach::python {

/// Layouts that were read from DWARF, one small text file a build id. It only saves time: whatever goes wrong
/// with it, the DWARF is read again.
class LayoutCache {
  public:
    /// An empty `directory` means the default: XDG_CACHE_HOME/memattach, else HOME/.cache/memattach.
    explicit LayoutCache(const std::string& directory);

    [[nodiscard]] std::optional<Layout> load(const std::string& build_id) const;
    /// Under a temporary name, then renamed. Nothing is written where the directory belongs to somebody else
    /// or others may write to it.
    void save(const std::string& build_id, const Layout& layout) const;

    /// The text of a cache file. Only offsets are in it; see apply_version for the rest.
    static std::string to_text(const Layout& layout);
    /// Nothing where the text is not one that to_text of this very program could have written.
    static std::optional<Layout> from_text(std::string_view text);

  private:
    [[nodiscard]] std::string path_of(const std::string& build_id) const;
    std::string directory_;  ///< empty: no cache
};

}  // namespace memattach::python
