#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/process/memory.h"

namespace memattach::elf {

/// An ELF module as it lies in the target's memory, for when no file of it can be reached (deleted by an
/// upgrade, unreadable, in another mount namespace) and to tell whether a file that was found by its name is
/// the one that is loaded. Only what the loader itself needs is in memory: program headers, notes, .dynsym.
class MemoryImage {
  public:
    /// `start` is where the beginning of the file (its ELF header) is mapped. Nothing where there is none.
    static std::optional<MemoryImage> read(const process::Memory& memory, base::Address start);

    [[nodiscard]] std::uint64_t bias() const { return bias_; }
    [[nodiscard]] const std::string& build_id() const { return build_id_; }  ///< hex; empty: none

    /// A defined symbol of the dynamic symbol table, by its hash table; its address, bias included. Each call
    /// reads from the target anew.
    [[nodiscard]] std::optional<base::Address> find_symbol(std::string_view name) const;

  private:
    explicit MemoryImage(const process::Memory& memory) : memory_(&memory) {}
    void read_note(base::Address at, std::uint64_t bytes, std::uint64_t align);
    void read_dynamic(base::Address at, std::uint64_t bytes);
    [[nodiscard]] std::optional<base::Address> symbol_named(std::uint32_t index, std::string_view name) const;
    [[nodiscard]] std::optional<base::Address> find_by_gnu_hash(std::string_view name) const;
    [[nodiscard]] std::optional<base::Address> find_by_sysv_hash(std::string_view name) const;

    const process::Memory* memory_;
    std::uint64_t bias_ = 0;
    std::string build_id_;
    base::Address symbols_, strings_, gnu_hash_, sysv_hash_;
};

}  // namespace memattach::elf
