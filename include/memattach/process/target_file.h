#pragma once

#include <string>

#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"

namespace memattach::process {

/// Opens for reading the very file that `mapping` maps into process `pid`, wherever it is: below the target's
/// own root, deleted, or replaced by an upgrade. Not open where none of the ways leads to it; `why` then says
/// so in one clause. Only regular files are opened: the path is the target's, and opening a device or a FIFO
/// can do things.
base::UniqueFd open_mapped_file(int pid, const Mapping& mapping, std::string& why);

}  // namespace memattach::process
