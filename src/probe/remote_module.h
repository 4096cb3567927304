/// The dynamic linker's view of a process, read from its memory alone: which modules are loaded, in lookup
/// order, and what their dynamic symbols are. Works where no file can be opened (deleted, in another
/// container), and says what the program would get when it binds `malloc`.
///
///     for (const RemoteModule& m : loaded_modules(pid, memory)) if (auto s = m.find("malloc")) …
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/process/memory.h"

namespace memattach::probe {

struct RemoteSymbol {
    base::Address address;
    std::uint64_t size_bytes = 0;  ///< 0: unknown
};

class RemoteModule {
  public:
    /// `dynamic`: where its PT_DYNAMIC lies. Nothing where that holds no symbol table.
    static std::optional<RemoteModule> read(const process::Memory& memory, std::uint64_t bias,
                                            base::Address dynamic, std::string path);

    /// A defined function of that name that other modules can bind to.
    [[nodiscard]] std::optional<RemoteSymbol> find(std::string_view name) const;

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] std::uint64_t bias() const { return bias_; }

  private:
    struct Symbol;  // Elf64_Sym
    explicit RemoteModule(const process::Memory& memory) : memory_(&memory) {}
    [[nodiscard]] std::optional<RemoteSymbol> check(std::uint32_t index, std::string_view name) const;
    [[nodiscard]] std::optional<RemoteSymbol> find_gnu(std::string_view name) const;
    [[nodiscard]] std::optional<RemoteSymbol> find_sysv(std::string_view name) const;

    const process::Memory* memory_;
    std::uint64_t bias_ = 0;
    std::string path_;
    base::Address symbols_, strings_;
    std::uint64_t strings_bytes_ = 0;
    base::Address gnu_hash_, sysv_hash_;
    std::uint32_t gnu_buckets_ = 0, gnu_first_ = 0, gnu_bloom_words_ = 0, gnu_bloom_shift_ = 0;
    std::uint32_t sysv_buckets_ = 0;
};

/// In lookup order: the executable, what is preloaded, its libraries, later dlopen()s. Empty for a static
/// executable and where the list can't be read. `exe_path` names the executable, which the linker's own list
/// leaves unnamed.
std::vector<RemoteModule> loaded_modules(int pid, const process::Memory& memory, const std::string& exe_path);

}  // namespace memattach::probe
