#include "memattach/elf/memory_image.h"

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "memattach/base/bytes.h"

namespace memattach::elf {
namespace {

constexpr std::size_t kMaxProgramHeaders = 128;
constexpr std::size_t kMaxNoteBytes = 64 << 10;
constexpr std::size_t kMaxDynamicEntries = 512;
constexpr std::uint32_t kMaxChain = 65'536;  ///< symbols looked at for one name; real chains have 3
constexpr std::uint64_t kPageBytes = 4096;

std::uint32_t gnu_hash(std::string_view name) {
    std::uint32_t h = 5381;
    for (const char c : name) h = h * 33 + static_cast<std::uint8_t>(c);
    return h;
}

std::uint32_t sysv_hash(std::string_view name) {
    std::uint32_t h = 0;
    for (const char c : name) {
        h = (h << 4) + static_cast<std::uint8_t>(c);
        h = (h ^ (h & 0xF0000000) >> 24) & 0x0FFFFFFF;
    }
    return h;
}

}  // namespace

std::optional<MemoryImage> MemoryImage::read(const process::Memory& memory, base::Address start) {
    const auto header = memory.read<Elf64_Ehdr>(start);
    if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
        header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64 ||
        header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum == 0 ||
        header->e_phnum > kMaxProgramHeaders)
        return std::nullopt;
    std::vector<Elf64_Phdr> headers(header->e_phnum);
    if (!memory.read_exactly(start + header->e_phoff, std::as_writable_bytes(std::span(headers))))
        return std::nullopt;
    const auto first = std::find_if(headers.begin(), headers.end(), [](const Elf64_Phdr& h) {
        return h.p_type == PT_LOAD && h.p_offset / kPageBytes == 0;
    });
    if (first == headers.end()) return std::nullopt;

    MemoryImage image(memory);
    image.bias_ = start.value() - (first->p_vaddr & ~(kPageBytes - 1));
    for (const Elf64_Phdr& h : headers) {
        const base::Address at(image.bias_ + h.p_vaddr);
        if (h.p_type == PT_NOTE) image.read_note(at, h.p_filesz, h.p_align);
        if (h.p_type == PT_DYNAMIC) image.read_dynamic(at, h.p_memsz);
    }
    return image;
}

void MemoryImage::read_note(base::Address at, std::uint64_t bytes, std::uint64_t align) {
    if (!build_id_.empty()) return;
    std::vector<std::byte> note(std::min<std::uint64_t>(bytes, kMaxNoteBytes));
    note.resize(memory_->read_up_to(at, note));
    const std::uint64_t unit = align == 8 ? 8 : 4;
    const auto rounded = [&](std::uint64_t n) { return (n + unit - 1) / unit * unit; };
    for (std::uint64_t offset = 0; const auto header = base::read_at<Elf64_Nhdr>(note, offset);) {
        const std::uint64_t name = offset + sizeof(Elf64_Nhdr);
        const std::uint64_t descriptor = name + rounded(header->n_namesz);
        offset = descriptor + rounded(header->n_descsz);
        if (header->n_type != NT_GNU_BUILD_ID || header->n_descsz > 64 ||
            base::read_at<std::array<char, 4>>(note, name) != std::array<char, 4>{'G', 'N', 'U', '\0'})
            continue;
        for (std::uint64_t i = 0; i < header->n_descsz; ++i) {
            const auto byte = base::read_at<std::uint8_t>(note, descriptor + i);
            if (!byte) break;
            build_id_ += fmt::format("{:02x}", *byte);
        }
        return;
    }
}

void MemoryImage::read_dynamic(base::Address at, std::uint64_t bytes) {
    std::vector<Elf64_Dyn> entries(std::min<std::uint64_t>(bytes / sizeof(Elf64_Dyn), kMaxDynamicEntries));
    const auto raw = std::as_writable_bytes(std::span(entries));
    entries.resize(memory_->read_up_to(at, raw) / sizeof(Elf64_Dyn));
    for (const Elf64_Dyn& entry : entries) {
        if (entry.d_tag == DT_NULL) break;
        // glibc adds the bias to these in place (elf_get_dynamic_info), musl leaves them alone.
        const std::uint64_t value = entry.d_un.d_ptr;
        const base::Address address(value < bias_ ? value + bias_ : value);
        if (entry.d_tag == DT_SYMTAB) symbols_ = address;
        if (entry.d_tag == DT_STRTAB) strings_ = address;
        if (entry.d_tag == DT_GNU_HASH) gnu_hash_ = address;
        if (entry.d_tag == DT_HASH) sysv_hash_ = address;
    }
}

std::optional<base::Address> MemoryImage::symbol_named(std::uint32_t index, std::string_view name) const {
    const auto symbol = memory_->read<Elf64_Sym>(symbols_ + std::uint64_t{index} * sizeof(Elf64_Sym));
    if (!symbol || symbol->st_shndx == SHN_UNDEF) return std::nullopt;
    std::string text(name.size() + 1, '\1');
    if (!memory_->read_exactly(strings_ + symbol->st_name, std::as_writable_bytes(std::span(text))) ||
        text.back() != '\0' || text.compare(0, name.size(), name) != 0)
        return std::nullopt;
    return base::Address(bias_ + symbol->st_value);
}

std::optional<base::Address> MemoryImage::find_by_gnu_hash(std::string_view name) const {
    struct Header {
        std::uint32_t buckets, first_symbol, bloom_words, bloom_shift;
    };
    const auto header = memory_->read<Header>(gnu_hash_);
    if (!header || header->buckets == 0) return std::nullopt;
    const base::Address buckets = gnu_hash_ + sizeof(Header) + std::uint64_t{header->bloom_words} * 8;
    const base::Address chains = buckets + std::uint64_t{header->buckets} * 4;
    const std::uint32_t hash = gnu_hash(name);
    const auto first = memory_->read<std::uint32_t>(buckets + std::uint64_t{hash % header->buckets} * 4);
    if (!first || *first < header->first_symbol) return std::nullopt;
    for (std::uint32_t i = 0; i < kMaxChain; ++i) {
        const std::uint32_t index = *first + i;
        const auto link =
            memory_->read<std::uint32_t>(chains + std::uint64_t{index - header->first_symbol} * 4);
        if (!link) return std::nullopt;
        if ((*link | 1) == (hash | 1))
            if (const auto found = symbol_named(index, name)) return found;
        if ((*link & 1) != 0) break;
    }
    return std::nullopt;
}

std::optional<base::Address> MemoryImage::find_by_sysv_hash(std::string_view name) const {
    struct Header {
        std::uint32_t buckets, chains;
    };
    const auto header = memory_->read<Header>(sysv_hash_);
    if (!header || header->buckets == 0) return std::nullopt;
    const base::Address buckets = sysv_hash_ + sizeof(Header);
    const base::Address chains = buckets + std::uint64_t{header->buckets} * 4;
    auto index = memory_->read<std::uint32_t>(buckets + std::uint64_t{sysv_hash(name) % header->buckets} * 4);
    for (std::uint32_t i = 0; i < kMaxChain && index && *index != 0 && *index < header->chains; ++i) {
        if (const auto found = symbol_named(*index, name)) return found;
        index = memory_->read<std::uint32_t>(chains + std::uint64_t{*index} * 4);
    }
    return std::nullopt;
}

std::optional<base::Address> MemoryImage::find_symbol(std::string_view name) const {
    if (symbols_.is_null() || strings_.is_null()) return std::nullopt;
    if (!gnu_hash_.is_null()) return find_by_gnu_hash(name);
    return sysv_hash_.is_null() ? std::nullopt : find_by_sysv_hash(name);
}

}  // namespace memattach::elf
