#include "memattach/probe/text_check.h"

#include <unistd.h>

#include <array>
#include <map>
#include <string>

#include "memattach/base/unique_fd.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"

namespace memattach::probe {

std::optional<bool> text_equals_files(int pid, const std::vector<std::uint64_t>& pages) {
    constexpr std::size_t kPageBytes = 4096;
    const std::vector<process::Mapping> maps = process::read_maps(pid);
    const process::LiveMemory memory(pid);
    std::map<const process::Mapping*, process::MappedFile> files;
    std::optional<bool> result;
    for (const std::uint64_t page : pages) {
        const process::Mapping* mapping = process::find_mapping(maps, base::Address(page));
        if (mapping == nullptr || mapping->inode == 0) continue;
        auto file = files.find(mapping);
        if (file == files.end()) {
            file = files.emplace(mapping, process::open_mapped_file(pid, *mapping)).first;
        }
        if (!file->second.fd.is_open()) continue;
        std::array<std::byte, kPageBytes> in_memory{};
        std::array<std::byte, kPageBytes> in_file{};
        const std::uint64_t offset = mapping->file_offset + (page - mapping->start.value());
        if (!memory.read_exactly(base::Address(page), in_memory)) continue;
        // The file may end within the page; the rest of it is zeros in memory, as in the array.
        if (::pread(file->second.fd.get(), in_file.data(), in_file.size(), static_cast<off_t>(offset)) <= 0)
            continue;
        if (in_memory != in_file) {
            // What only bears the name may well be another file.
            if (file->second.certain) return false;
            continue;
        }
        result = true;
    }
    return result;
}

}  // namespace memattach::probe
