#include "memattach/process/target_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <cerrno>

#include "memattach/base/error.h"

namespace memattach::process {
namespace {

/// A descriptor for reading, or one that isn't open with errno set. `same` says whether it is the file of
/// the mapping by device and inode.
base::UniqueFd open_regular(const std::string& path, const Mapping& mapping, bool& same) {
    const base::UniqueFd place(::open(path.c_str(), O_PATH | O_CLOEXEC));
    struct stat status {};
    if (!place.is_open() || ::fstat(place.get(), &status) != 0) return {};
    if (!S_ISREG(status.st_mode)) {
        errno = ENOTSUP;
        return {};
    }
    same = status.st_ino == mapping.inode && major(status.st_dev) == mapping.device_major &&
           minor(status.st_dev) == mapping.device_minor;
    return base::UniqueFd(::open(fmt::format("/proc/self/fd/{}", place.get()).c_str(), O_RDONLY | O_CLOEXEC));
}

}  // namespace

base::UniqueFd open_mapped_file(int pid, const Mapping& mapping, std::string& why) {
    const std::array<std::string, 3> ways = {
        mapping.deleted ? std::string() : fmt::format("/proc/{}/root{}", pid, mapping.path),
        fmt::format("/proc/{}/exe", pid),
        // The kernel's own link to the mapped file. Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE (5.9+) in
        // the initial user namespace: proc_map_files_get_link, fs/proc/base.c.
        fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, mapping.start.value(), mapping.end.value()),
    };
    int first_error = 0;
    base::UniqueFd by_name;
    for (std::size_t i = 0; i < ways.size(); ++i) {
        if (ways[i].empty()) continue;
        bool same = false;
        base::UniqueFd fd = open_regular(ways[i], mapping, same);
        const bool certain = i == 2;  // that link can't lead to anything else
        if (fd.is_open() && (same || certain)) return fd;
        if (!fd.is_open() && first_error == 0) first_error = errno;
        if (fd.is_open() && i == 0) by_name = std::move(fd);
    }
    // On overlay and btrfs, maps and stat can differ in the device (or inode) that they report for one file.
    // What is at that path is the best there is; whoever uses it compares build ids.
    if (by_name.is_open()) return by_name;
    why = fmt::format("{} can't be opened: {}", mapping.path,
                      base::errno_text(first_error != 0 ? first_error : ENOENT));
    return {};
}

}  // namespace memattach::process
