#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>

#include "memattach/base/address.h"

namespace memattach::process {

/// Another process's memory, read only. Everything that looks into a target goes through these two virtual
/// functions, so that tests and fuzzers put a fake in its place.
///
/// What is read may be torn, stale or forged: a successful read says that bytes were there, nothing more.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    virtual ~Memory() = default;

    /// Reads from `from` on up to out.size() bytes. Returns how many bytes could be read before the first
    /// that couldn't: 0 where nothing is mapped, the permission is missing or the process is gone. Never
    /// throws.
    [[nodiscard]] virtual std::size_t read_up_to(base::Address from, std::span<std::byte> out) const = 0;

    struct Piece {
        base::Address from;
        std::span<std::byte> out;
    };
    /// Reads several pieces, in this order, with as few system calls as the kernel allows (one for up to
    /// 1,024 pieces). Returns how many of the leading pieces arrived whole; the rest hold unspecified bytes.
    /// The pieces are copied one after the other while the target runs, so a word that is listed both first
    /// and last tells whether it changed in between.
    [[nodiscard]] virtual std::size_t read_pieces(std::span<const Piece> pieces) const;

    /// All of `out` or false.
    [[nodiscard]] bool read_exactly(base::Address from, std::span<std::byte> out) const {
        return read_up_to(from, out) == out.size();
    }

    template <typename T>
    [[nodiscard]] std::optional<T> read(base::Address from) const {
        static_assert(std::is_trivially_copyable_v<T>);
        T value;
        if (!read_exactly(from, std::as_writable_bytes(std::span(&value, 1)))) return std::nullopt;
        return value;
    }

    [[nodiscard]] std::optional<base::Address> read_address(base::Address from) const {
        const auto value = read<std::uint64_t>(from);
        if (!value) return std::nullopt;
        return base::Address(*value);
    }

    /// The NUL-terminated string at `from`, without the NUL; nothing where there is no NUL within
    /// `max_bytes`.
    [[nodiscard]] std::optional<std::string> read_c_string(base::Address from, std::size_t max_bytes) const;
};

/// A live process, through process_vm_readv(2): one system call a read, no stop. `pid` must be the thread
/// group's id.
class LiveMemory final : public Memory {
  public:
    explicit LiveMemory(int pid) : pid_(pid) {}

    [[nodiscard]] std::size_t read_up_to(base::Address from, std::span<std::byte> out) const override;
    [[nodiscard]] std::size_t read_pieces(std::span<const Piece> pieces) const override;

  private:
    int pid_;
};

}  // namespace memattach::process
