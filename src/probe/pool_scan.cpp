#include "memattach/probe/pool_scan.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "pymalloc_pool.h"

namespace memattach::probe {
namespace {

static_assert(trace::LiveBlocks::kObjectClasses == kPoolClasses);

constexpr std::uint64_t kPage = 4096;
// /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst: a word a page
constexpr std::uint64_t kPresent = std::uint64_t{1} << 63, kSwapped = std::uint64_t{1} << 62;
constexpr std::size_t kBatch = 1024;

/// Arenas are mapped by the allocator itself; 3.14 names them.
bool may_hold_pools(const process::Mapping& mapping) {
    return mapping.readable && mapping.writable && !mapping.shared && mapping.inode == 0 &&
           (mapping.path.empty() || mapping.path.starts_with("[anon"));
}

std::optional<PoolHeader> checked(const PoolHeader& header, std::uint64_t pool, std::uint64_t pool_bytes) {
    if (!header.is_of_pool(pool_bytes) || header.carved() < header.in_use()) return std::nullopt;
    const std::uint64_t most = (pool_bytes - sizeof header) / header.block_bytes();
    if (header.carved() > most ||
        (header.freeblock != 0 && header.freeblock / pool_bytes != pool / pool_bytes))
        return std::nullopt;
    return header;
}

}  // namespace

PoolScan::PoolScan(int pid, const process::Memory& memory)
    : memory_(memory), pagemap_(::open(fmt::format("/proc/{}/pagemap", pid).c_str(), O_RDONLY | O_CLOEXEC)) {}

/// False where there are too many.
bool PoolScan::find_places(const process::Mapping& mapping, std::uint64_t pool_bytes, PoolCounts& counts) {
    const std::uint64_t start = (mapping.start.value() + pool_bytes - 1) / pool_bytes * pool_bytes;
    constexpr std::size_t kPagesAtOnce = 1 << 15;
    for (std::uint64_t from = start; from + pool_bytes <= mapping.end.value();) {
        const std::size_t count = std::min<std::size_t>(
            kPagesAtOnce, (mapping.end.value() - from) / pool_bytes * (pool_bytes / kPage));
        pages_.assign(count, kPresent);
        if (pagemap_.is_open()) {
            const auto bytes = ::pread(pagemap_.get(), pages_.data(), count * sizeof pages_[0],
                                       static_cast<off_t>(from / kPage * sizeof pages_[0]));
            if (bytes < 0) pagemap_.reset();
        }
        for (std::size_t page = 0; page < count; page += pool_bytes / kPage) {
            if ((pages_[page] & kPresent) != 0) {
                places_.push_back(from + page * kPage);
            } else if ((pages_[page] & kSwapped) != 0) {
                ++counts.swapped_out;
            }
        }
        if (places_.size() > kMostPlaces) return false;
        from += count * kPage;
    }
    return true;
}

std::optional<PoolCounts> PoolScan::count(const std::vector<process::Mapping>& maps,
                                          std::uint64_t pool_bytes) {
    PoolCounts counts;
    places_.clear();
    for (const process::Mapping& mapping : maps)
        if (may_hold_pools(mapping) && !find_places(mapping, pool_bytes, counts)) return std::nullopt;
    std::vector<PoolHeader> headers(std::min(kBatch, places_.size()));
    std::vector<process::Memory::Piece> pieces;
    for (std::size_t first = 0; first < places_.size(); first += kBatch) {
        const std::size_t batch = std::min(kBatch, places_.size() - first);
        pieces.clear();
        for (std::size_t i = 0; i < batch; ++i) {
            headers[i] = {};
            pieces.push_back(
                {base::Address(places_[first + i]), std::as_writable_bytes(std::span(&headers[i], 1))});
        }
        for (std::size_t i = 0; i < batch;) i += memory_.read_pieces(std::span(pieces).subspan(i)) + 1;
        for (std::size_t i = 0; i < batch; ++i) {
            const auto header = checked(headers[i], places_[first + i], pool_bytes);
            if (!header || header->in_use() == 0) continue;
            counts.blocks[header->size_class] += header->in_use();
            counts.pools.push_back(
                {places_[first + i], header->size_class, static_cast<std::uint32_t>(header->in_use())});
        }
    }
    return counts;
}

std::optional<PoolCounts> PoolScan::count(const std::vector<process::Mapping>& maps) {
    if (pool_bytes_ != 0) return count(maps, pool_bytes_);
    std::optional<PoolCounts> best;
    for (const std::uint64_t pool_bytes : kPoolBytes) {
        auto counts = count(maps, pool_bytes);
        if (!counts) return std::nullopt;
        if (!best || counts->pools.size() > best->pools.size()) {
            if (!counts->pools.empty()) pool_bytes_ = pool_bytes;
            best = std::move(counts);
        }
    }
    return best;
}

}  // namespace memattach::probe
