#include "memattach/process/target_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <cerrno>

#include "memattach/base/error.h"
#include "memattach/process/proc.h"

namespace memattach::process {
namespace {

/// Opens a regular file without opening anything else on the way; errno says why not.
base::UniqueFd open_regular(const std::string& path, struct stat& status) {
    const base::UniqueFd place(::open(path.c_str(), O_PATH | O_CLOEXEC));
    if (!place.is_open() || ::fstat(place.get(), &status) != 0) return {};
    if (!S_ISREG(status.st_mode)) {
        errno = ENOTSUP;
        return {};
    }
    return base::UniqueFd(::open(fmt::format("/proc/self/fd/{}", place.get()).c_str(), O_RDONLY | O_CLOEXEC));
}

bool is_of(const struct stat& status, const Mapping& mapping) {
    return status.st_ino == mapping.inode && major(status.st_dev) == mapping.device_major &&
           minor(status.st_dev) == mapping.device_minor;
}

}  // namespace

std::string path_in_target(int pid, const std::string& path) {
    const auto root = read_link(fmt::format("/proc/{}/root", pid));
    if (!root || *root == "/" || path.size() <= root->size() || path.compare(0, root->size(), *root) != 0 ||
        path[root->size()] != '/')
        return path;
    return path.substr(root->size());
}

base::UniqueFd open_in_target(int pid, const std::string& path) {
    struct stat status {};
    return open_regular(fmt::format("/proc/{}/root{}", pid, path), status);
}

MappedFile open_mapped_file(int pid, const Mapping& mapping) {
    // The kernel writes paths in maps as they are from the reader's root where the file can be reached from
    // there (a chrooted target), else from the root of its mount namespace (a container).
    const std::array<std::string, 4> ways = {
        mapping.deleted ? std::string()
                        : fmt::format("/proc/{}/root{}", pid, path_in_target(pid, mapping.path)),
        mapping.deleted ? std::string() : mapping.path,
        fmt::format("/proc/{}/exe", pid),
        // The kernel's own link to the mapped file; it can't lead to anything else. Needs CAP_SYS_ADMIN or
        // CAP_CHECKPOINT_RESTORE (5.9+) in the first user namespace: proc_map_files_get_link, fs/proc/base.c.
        fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, mapping.start.value(), mapping.end.value()),
    };
    MappedFile by_name;
    int first_error = 0;
    for (std::size_t i = 0; i < ways.size(); ++i) {
        if (ways[i].empty()) continue;
        struct stat status {};
        base::UniqueFd fd = open_regular(ways[i], status);
        if (!fd.is_open()) {
            if (first_error == 0) first_error = errno;
        } else if (is_of(status, mapping) || i == 3) {
            return {std::move(fd), true, {}};
        } else if (i == 0) {
            by_name.fd = std::move(fd);
        }
    }
    // On overlay and btrfs, maps and stat can differ in the device or inode that they report for one file.
    if (!by_name.fd.is_open())
        by_name.why = mapping.deleted
                          ? fmt::format("{} has been deleted", mapping.path)
                          : fmt::format("{} can't be opened ({})", mapping.path,
                                        base::errno_text(first_error != 0 ? first_error : ENOENT));
    return by_name;
}

}  // namespace memattach::process
