#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/base/address.h"

namespace memattach::process {

/// One line of /proc/PID/maps.
struct Mapping {
    base::Address start;
    base::Address end;
    std::uint64_t file_offset = 0;
    std::uint32_t device_major = 0;
    std::uint32_t device_minor = 0;
    std::uint64_t inode = 0;  ///< 0: not of a file
    bool readable = false;
    bool writable = false;
    bool executable = false;
    bool shared = false;
    bool deleted = false;  ///< the file has no name any more (the " (deleted)" is not part of `path`)
    std::string path;      ///< as the target's mount namespace has it, "[heap]" and the like; may be empty

    [[nodiscard]] std::uint64_t size_bytes() const { return end.value() - start.value(); }
    [[nodiscard]] bool contains(base::Address a) const { return a >= start && a < end; }
    [[nodiscard]] bool same_file(const Mapping& other) const {
        return inode != 0 && inode == other.inode && device_major == other.device_major &&
               device_minor == other.device_minor;
    }
};

/// Parses the text of /proc/PID/maps, in its order (ascending addresses, not overlapping). A line that makes
/// no sense is left out, and so is everything past `max_mappings`.
std::vector<Mapping> parse_maps(std::string_view text, std::size_t max_mappings = 1'000'000);

/// The mapping that holds `address`, or nothing.
const Mapping* find_mapping(const std::vector<Mapping>& maps, base::Address address);

}  // namespace memattach::process
