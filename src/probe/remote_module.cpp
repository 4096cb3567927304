#include "remote_module.h"

#include <elf.h>

#include <array>
#include <cstring>
#include <span>

#include "memattach/base/bytes.h"
#include "memattach/process/proc.h"

namespace memattach::probe {
namespace {

// Bounds of what a sane process has; what is read may be forged.
constexpr std::size_t kMaxDynamicEntries = 512;
constexpr std::size_t kMaxModules = 4096;
constexpr std::size_t kMaxChain = 4096;
constexpr std::size_t kMaxProgramHeaders = 256;
constexpr std::uint32_t kMaxBuckets = 1 << 26;

std::uint32_t gnu_hash_of(std::string_view name) {
    std::uint32_t hash = 5381;
    for (const char c : name) hash = hash * 33 + static_cast<unsigned char>(c);
    return hash;
}

std::uint32_t sysv_hash_of(std::string_view name) {
    std::uint32_t hash = 0;
    for (const char c : name) {
        hash = (hash << 4) + static_cast<unsigned char>(c);
        const std::uint32_t high = hash & 0xf0000000;
        hash ^= high >> 24;
        hash &= ~high;
    }
    return hash;
}

/// struct r_debug and struct link_map as <link.h> has them; the first members are the same in musl.
struct RDebug {
    std::int32_t version;
    std::int32_t padding;
    std::uint64_t map;
};
struct LinkMap {
    std::uint64_t bias, name, dynamic, next, previous;
};

std::optional<base::Address> main_dynamic(int pid, const process::Memory& memory, std::uint64_t& bias) {
    const auto auxv = process::read_proc(pid, "auxv");
    if (!auxv) return std::nullopt;
    std::uint64_t headers = 0, count = 0;
    for (std::size_t at = 0; at + sizeof(Elf64_auxv_t) <= auxv->size(); at += sizeof(Elf64_auxv_t)) {
        Elf64_auxv_t entry;
        std::memcpy(&entry, auxv->data() + at, sizeof entry);
        if (entry.a_type == AT_PHDR) headers = entry.a_un.a_val;
        if (entry.a_type == AT_PHNUM) count = entry.a_un.a_val;
    }
    if (headers == 0 || count == 0 || count > kMaxProgramHeaders) return std::nullopt;
    std::vector<Elf64_Phdr> table(count);
    if (!memory.read_exactly(base::Address(headers), std::as_writable_bytes(std::span(table))))
        return std::nullopt;
    bias = 0;
    std::optional<std::uint64_t> dynamic;
    for (const Elf64_Phdr& header : table) {
        if (header.p_type == PT_PHDR) bias = headers - header.p_vaddr;
        if (header.p_type == PT_DYNAMIC) dynamic = header.p_vaddr;
    }
    if (!dynamic) return std::nullopt;
    return base::Address(bias + *dynamic);
}

std::vector<Elf64_Dyn> read_dynamic(const process::Memory& memory, base::Address at) {
    std::vector<Elf64_Dyn> entries(kMaxDynamicEntries);
    const std::size_t got = memory.read_up_to(at, std::as_writable_bytes(std::span(entries)));
    entries.resize(got / sizeof(Elf64_Dyn));
    for (std::size_t i = 0; i < entries.size(); ++i) {
        if (entries[i].d_tag == DT_NULL) {
            entries.resize(i);
            break;
        }
    }
    return entries;
}

}  // namespace

std::optional<RemoteModule> RemoteModule::read(const process::Memory& memory, std::uint64_t bias,
                                               base::Address dynamic, std::string path) {
    RemoteModule module(memory);
    module.bias_ = bias;
    module.path_ = std::move(path);
    for (const Elf64_Dyn& entry : read_dynamic(memory, dynamic)) {
        // glibc writes the loaded addresses back into the table, musl (and the vDSO) leave the file's.
        const std::uint64_t value = entry.d_un.d_ptr;
        const base::Address address(value < bias ? value + bias : value);
        switch (entry.d_tag) {
            case DT_SYMTAB:
                module.symbols_ = address;
                break;
            case DT_STRTAB:
                module.strings_ = address;
                break;
            case DT_STRSZ:
                module.strings_bytes_ = value;
                break;
            case DT_GNU_HASH:
                module.gnu_hash_ = address;
                break;
            case DT_HASH:
                module.sysv_hash_ = address;
                break;
            default:
                break;
        }
    }
    if (module.symbols_.is_null() || module.strings_.is_null()) return std::nullopt;
    if (!module.gnu_hash_.is_null()) {
        const auto header = memory.read<std::array<std::uint32_t, 4>>(module.gnu_hash_);
        if (header && (*header)[0] != 0 && (*header)[0] < kMaxBuckets && (*header)[2] != 0 &&
            (*header)[2] < kMaxBuckets && (*header)[3] < 32) {
            module.gnu_buckets_ = (*header)[0];
            module.gnu_first_ = (*header)[1];
            module.gnu_bloom_words_ = (*header)[2];
            module.gnu_bloom_shift_ = (*header)[3];
        }
    }
    if (!module.sysv_hash_.is_null()) {
        const auto header = memory.read<std::array<std::uint32_t, 2>>(module.sysv_hash_);
        if (header && (*header)[0] != 0 && (*header)[0] < kMaxBuckets) module.sysv_buckets_ = (*header)[0];
    }
    if (module.gnu_buckets_ == 0 && module.sysv_buckets_ == 0) return std::nullopt;
    return module;
}

std::optional<RemoteSymbol> RemoteModule::check(std::uint32_t index, std::string_view name) const {
    const auto symbol = memory_->read<Elf64_Sym>(symbols_ + std::uint64_t{index} * sizeof(Elf64_Sym));
    if (!symbol || symbol->st_shndx == SHN_UNDEF || symbol->st_value == 0) return std::nullopt;
    const auto type = ELF64_ST_TYPE(symbol->st_info);
    const auto bind = ELF64_ST_BIND(symbol->st_info);
    if (type != STT_FUNC && type != STT_NOTYPE) return std::nullopt;
    if (bind != STB_GLOBAL && bind != STB_WEAK) return std::nullopt;
    if (symbol->st_name >= strings_bytes_) return std::nullopt;
    std::array<char, 64> text{};
    if (name.size() + 1 > text.size()) return std::nullopt;
    const auto bytes = std::as_writable_bytes(std::span(text)).first(name.size() + 1);
    if (!memory_->read_exactly(strings_ + symbol->st_name, bytes)) return std::nullopt;
    if (std::string_view(text.data(), name.size()) != name || text[name.size()] != '\0') return std::nullopt;
    return RemoteSymbol{base::Address(bias_ + symbol->st_value), symbol->st_size};
}

std::optional<RemoteSymbol> RemoteModule::find_gnu(std::string_view name) const {
    const std::uint32_t hash = gnu_hash_of(name);
    const base::Address bloom = gnu_hash_ + 16;
    const auto word = memory_->read<std::uint64_t>(bloom + 8 * ((hash / 64) % gnu_bloom_words_));
    if (!word) return std::nullopt;
    const std::uint64_t mask =
        (std::uint64_t{1} << (hash % 64)) | (std::uint64_t{1} << ((hash >> gnu_bloom_shift_) % 64));
    if ((*word & mask) != mask) return std::nullopt;
    const base::Address buckets = bloom + 8 * std::uint64_t{gnu_bloom_words_};
    const auto first = memory_->read<std::uint32_t>(buckets + 4 * std::uint64_t{hash % gnu_buckets_});
    if (!first || *first < gnu_first_) return std::nullopt;
    const base::Address chain = buckets + 4 * std::uint64_t{gnu_buckets_};
    for (std::uint32_t i = 0; i < kMaxChain; ++i) {
        const std::uint32_t index = *first + i;
        const auto value = memory_->read<std::uint32_t>(chain + 4 * std::uint64_t{index - gnu_first_});
        if (!value) return std::nullopt;
        if ((*value | 1) == (hash | 1)) {
            if (const auto symbol = check(index, name)) return symbol;
        }
        if ((*value & 1) != 0) return std::nullopt;
    }
    return std::nullopt;
}

std::optional<RemoteSymbol> RemoteModule::find_sysv(std::string_view name) const {
    const base::Address buckets = sysv_hash_ + 8;
    const base::Address chain = buckets + 4 * std::uint64_t{sysv_buckets_};
    auto index =
        memory_->read<std::uint32_t>(buckets + 4 * std::uint64_t{sysv_hash_of(name) % sysv_buckets_});
    for (std::size_t i = 0; i < kMaxChain && index && *index != 0; ++i) {
        if (const auto symbol = check(*index, name)) return symbol;
        index = memory_->read<std::uint32_t>(chain + 4 * std::uint64_t{*index});
    }
    return std::nullopt;
}

std::optional<RemoteSymbol> RemoteModule::find(std::string_view name) const {
    return gnu_buckets_ != 0 ? find_gnu(name) : find_sysv(name);
}

std::vector<RemoteModule> loaded_modules(int pid, const process::Memory& memory,
                                         const std::string& exe_path) {
    std::vector<RemoteModule> modules;
    std::uint64_t bias = 0;
    const auto dynamic = main_dynamic(pid, memory, bias);
    if (!dynamic) return modules;
    base::Address debug;
    for (const Elf64_Dyn& entry : read_dynamic(memory, *dynamic)) {
        if (entry.d_tag == DT_DEBUG) debug = base::Address(entry.d_un.d_ptr);
    }
    std::uint64_t next = 0;
    if (!debug.is_null()) {
        if (const auto header = memory.read<RDebug>(debug)) next = header->map;
    }
    if (next == 0) {
        if (auto module = RemoteModule::read(memory, bias, *dynamic, exe_path)) modules.push_back(*module);
        return modules;
    }
    for (std::size_t i = 0; next != 0 && i < kMaxModules; ++i) {
        const auto map = memory.read<LinkMap>(base::Address(next));
        if (!map) break;
        std::string name = memory.read_c_string(base::Address(map->name), 4096).value_or("");
        if (i == 0 && name.empty()) name = exe_path;
        if (auto module = RemoteModule::read(memory, map->bias, base::Address(map->dynamic), std::move(name)))
            modules.push_back(std::move(*module));
        next = map->next;
    }
    return modules;
}

}  // namespace memattach::probe
