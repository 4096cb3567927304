#include "memattach/process/memory.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace memattach::process {
namespace {

constexpr std::size_t kMaxPieces = 1024;  // UIO_MAXIOV, include/uapi/linux/uio.h
constexpr std::uint64_t kPageBytes = 4096;

}  // namespace

std::size_t Memory::read_pieces(std::span<const Piece> pieces) const {
    std::size_t whole = 0;
    while (whole < pieces.size() && read_exactly(pieces[whole].from, pieces[whole].out)) ++whole;
    return whole;
}

std::optional<std::string> Memory::read_c_string(base::Address from, std::size_t max_bytes) const {
    std::string text;
    std::array<std::byte, 256> chunk;
    while (text.size() < max_bytes) {
        // No read crosses a page needlessly: the string may end on the last mapped one.
        const std::uint64_t to_page_end = kPageBytes - from.value() % kPageBytes;
        const std::size_t wanted =
            std::min({chunk.size(), static_cast<std::size_t>(to_page_end), max_bytes - text.size()});
        const std::size_t got = read_up_to(from, std::span(chunk).first(wanted));
        if (got == 0) return std::nullopt;
        const auto* begin = reinterpret_cast<const char*>(chunk.data());
        if (const void* nul = std::memchr(begin, 0, got)) {
            text.append(begin, static_cast<const char*>(nul));
            return text;
        }
        text.append(begin, got);
        from = from + got;
    }
    return std::nullopt;
}

std::size_t LiveMemory::read_up_to(base::Address from, std::span<std::byte> out) const {
    // The kernel transfers whole iovec elements or stops within one at a page that isn't there
    // (process_vm_readv(2)): the count that it returns is exact at page granularity.
    iovec local{out.data(), out.size()};
    iovec remote{reinterpret_cast<void*>(from.value()), out.size()};  // NOLINT(performance-no-int-to-ptr)
    const ssize_t got = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0);
    return got > 0 ? static_cast<std::size_t>(got) : 0;
}

std::size_t LiveMemory::read_pieces(std::span<const Piece> pieces) const {
    std::array<iovec, kMaxPieces> local;
    std::array<iovec, kMaxPieces> remote;
    std::size_t whole = 0;
    while (whole < pieces.size()) {
        const auto batch = pieces.subspan(whole, std::min(kMaxPieces, pieces.size() - whole));
        std::size_t wanted = 0;
        for (std::size_t i = 0; i < batch.size(); ++i) {
            local[i] = {batch[i].out.data(), batch[i].out.size()};
            remote[i] = {reinterpret_cast<void*>(batch[i].from.value()),  // NOLINT(performance-no-int-to-ptr)
                         batch[i].out.size()};
            wanted += batch[i].out.size();
        }
        const ssize_t got =
            ::process_vm_readv(pid_, local.data(), batch.size(), remote.data(), batch.size(), 0);
        std::size_t left = got > 0 ? static_cast<std::size_t>(got) : 0;
        if (left == wanted) {
            whole += batch.size();
            continue;
        }
        for (const Piece& piece : batch) {
            if (left < piece.out.size()) return whole;
            left -= piece.out.size();
            ++whole;
        }
        return whole;
    }
    return whole;
}

}  // namespace memattach::process
