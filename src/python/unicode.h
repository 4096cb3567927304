#pragma once

#include <optional>
#include <string>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"

namespace memattach::python {

/// Names and paths are cut here: nothing that a person reads is longer, and a forged length of 1 GB must cost
/// nothing.
inline constexpr std::size_t kMaxNameBytes = 4096;

/// The str object at `object` as UTF-8, cut at about kMaxNameBytes with "…" at the end; nothing where it
/// can't be read or is none. Lone surrogates, which CPython has for undecodable bytes of file names, become
/// U+FFFD.
std::optional<std::string> read_unicode(const process::Memory& memory, const Layout& layout,
                                        base::Address object);

}  // namespace memattach::python
