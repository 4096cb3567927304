#pragma once

#include <string>

#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"

namespace memattach::process {

/// A file of the target, open for reading here.
struct MappedFile {
    base::UniqueFd fd;     ///< not open where none of the ways leads to the file
    bool certain = false;  ///< by device and inode it is the mapped one; else it is what has that name now
    std::string why;       ///< where it isn't open: the reason, in one clause
};

/// Opens the very file that `mapping` maps into process `pid`, wherever it is: below the target's own root,
/// in another mount namespace, deleted, or replaced by an upgrade. Only regular files are opened: the path is
/// the target's, and opening a device or a FIFO can do things.
MappedFile open_mapped_file(int pid, const Mapping& mapping);

/// `path` (as /proc/PID/maps shows it to memattach) as the target itself would name it: without the directory
/// that it has been chrooted to.
std::string path_in_target(int pid, const std::string& path);

/// Opens a file by the name that it has for the target. Regular files only; errno says why not.
base::UniqueFd open_in_target(int pid, const std::string& path);

}  // namespace memattach::process
