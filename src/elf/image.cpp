#include "memattach/elf/image.h"

#include <fmt/format.h>
#include <gelf.h>
#include <libelf.h>

#include <algorithm>
#include <cstring>

namespace memattach::elf {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t page_start(std::uint64_t address) {
    return address & ~(kPageBytes - 1);
}

/// The descriptor of the GNU build id in the bytes of a note segment or section.
std::string build_id_in(Elf_Data* data) {
    std::size_t offset = 0;
    GElf_Nhdr note;
    std::size_t name_at = 0;
    std::size_t descriptor_at = 0;
    while (data != nullptr && (offset = gelf_getnote(data, offset, &note, &name_at, &descriptor_at)) > 0) {
        const auto* bytes = static_cast<const unsigned char*>(data->d_buf);
        if (note.n_type != NT_GNU_BUILD_ID || note.n_namesz != sizeof "GNU" ||
            std::memcmp(bytes + name_at, "GNU", sizeof "GNU") != 0 || note.n_descsz > 64)
            continue;
        std::string hex;
        for (std::size_t i = 0; i < note.n_descsz; ++i)
            hex += fmt::format("{:02x}", bytes[descriptor_at + i]);
        return hex;
    }
    return {};
}

std::optional<Symbol> find_in(Elf_Scn* section, const GElf_Shdr& header, Elf* elf, std::string_view name,
                              std::string_view table) {
    Elf_Data* data = elf_getdata(section, nullptr);
    if (data == nullptr || data->d_size > INT32_MAX) return std::nullopt;
    const int count = static_cast<int>(data->d_size / sizeof(Elf64_Sym));
    for (int i = 0; i < count; ++i) {
        GElf_Sym symbol;
        if (gelf_getsym(data, i, &symbol) == nullptr) break;
        if (symbol.st_shndx == SHN_UNDEF || symbol.st_name == 0) continue;
        const char* text = elf_strptr(elf, header.sh_link, symbol.st_name);
        if (text != nullptr && name == text) return Symbol{symbol.st_value, symbol.st_size, table};
    }
    return std::nullopt;
}

}  // namespace

void Image::End::operator()(Elf* elf) const {
    elf_end(elf);
}
Image::Image(Image&&) noexcept = default;
Image& Image::operator=(Image&& other) noexcept {
    elf_ = std::move(other.elf_);  // ends the old one while its file is still open
    file_ = std::move(other.file_);
    segments_ = std::move(other.segments_);
    build_id_ = std::move(other.build_id_);
    position_independent_ = other.position_independent_;
    return *this;
}
Image::~Image() = default;

std::optional<Image> Image::open(base::UniqueFd file) {
    elf_version(EV_CURRENT);
    const int fd = file.get();
    return fd < 0 ? std::nullopt : read(std::move(file), elf_begin(fd, ELF_C_READ, nullptr));
}

std::optional<Image> Image::open(std::span<const std::byte> bytes) {
    elf_version(EV_CURRENT);
    // elf_memory takes a char* for files that are to be written; reading leaves it alone.
    auto* start = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));
    return read({}, bytes.empty() ? nullptr : elf_memory(start, bytes.size()));
}

std::optional<Image> Image::read(base::UniqueFd file, Elf* elf) {
    Image image;
    image.file_ = std::move(file);
    image.elf_.reset(elf);
    GElf_Ehdr header;
    if (elf == nullptr || elf_kind(elf) != ELF_K_ELF || gelf_getehdr(elf, &header) == nullptr ||
        header.e_machine != EM_X86_64 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB)
        return std::nullopt;
    image.position_independent_ = header.e_type == ET_DYN;

    std::size_t count = 0;
    if (elf_getphdrnum(elf, &count) != 0) count = 0;
    for (int i = 0; i < static_cast<int>(std::min<std::size_t>(count, 4096)); ++i) {
        GElf_Phdr segment;
        if (gelf_getphdr(elf, i, &segment) == nullptr) break;
        if (segment.p_type == PT_LOAD) {
            image.segments_.push_back({segment.p_vaddr, segment.p_offset, segment.p_filesz, segment.p_memsz,
                                       (segment.p_flags & PF_W) != 0, (segment.p_flags & PF_X) != 0});
        } else if (segment.p_type == PT_NOTE && image.build_id_.empty()) {
            image.build_id_ = build_id_in(
                elf_getdata_rawchunk(elf, static_cast<std::int64_t>(segment.p_offset), segment.p_filesz,
                                     segment.p_align == 8 ? ELF_T_NHDR8 : ELF_T_NHDR));
        }
    }
    return image;
}

std::optional<Section> Image::find_section(std::string_view name) const {
    std::size_t names = 0;
    if (elf_getshdrstrndx(handle(), &names) != 0) return std::nullopt;
    for (Elf_Scn* section = nullptr; (section = elf_nextscn(handle(), section)) != nullptr;) {
        GElf_Shdr header;
        if (gelf_getshdr(section, &header) == nullptr) break;
        const char* text = elf_strptr(handle(), names, header.sh_name);
        if (text != nullptr && name == text) return Section{header.sh_addr, header.sh_offset, header.sh_size};
    }
    return std::nullopt;
}

std::optional<Symbol> Image::find_symbol(std::string_view name) const {
    std::optional<Symbol> found;
    for (Elf_Scn* section = nullptr; (section = elf_nextscn(handle(), section)) != nullptr;) {
        GElf_Shdr header;
        if (gelf_getshdr(section, &header) == nullptr) break;
        if (header.sh_type == SHT_DYNSYM) {
            if (auto symbol = find_in(section, header, handle(), name, ".dynsym")) return symbol;
        } else if (header.sh_type == SHT_SYMTAB && !found) {
            found = find_in(section, header, handle(), name, ".symtab");
        }
    }
    return found;
}

std::optional<std::uint64_t> Image::load_bias(std::span<const process::Mapping> mappings) const {
    // The loader maps whole pages around each segment, so that one page of the file can be in two segments,
    // and permissions don't tell them apart (RELRO takes the w away): the bias that most mappings agree with.
    std::optional<std::uint64_t> best;
    std::size_t best_count = 0;
    for (const process::Mapping& first : mappings) {
        for (const Segment& segment : segments_) {
            if (page_start(segment.file_offset) != first.file_offset || segment.memory_bytes == 0) continue;
            const std::uint64_t bias = first.start.value() - page_start(segment.address);
            const auto count =
                std::count_if(mappings.begin(), mappings.end(), [&](const process::Mapping& m) {
                    return std::any_of(segments_.begin(), segments_.end(), [&](const Segment& s) {
                        return m.file_offset >= page_start(s.file_offset) &&
                               m.file_offset < s.file_offset + s.file_bytes &&
                               m.start.value() - m.file_offset ==
                                   bias + page_start(s.address) - page_start(s.file_offset);
                    });
                });
            if (static_cast<std::size_t>(count) <= best_count) continue;
            best = bias;
            best_count = static_cast<std::size_t>(count);
        }
    }
    return best;
}

}  // namespace memattach::elf
