/// ELF files of the target, through libelf: where they are loaded, what they are called by (build id), and
/// where their symbols are.
///
///     auto image = Image::open(process::open_mapped_file(pid, mapping).fd);    // or nothing
///     auto bias = image->load_bias(mappings_of_that_file);
///     if (auto symbol = image->find_symbol("_PyRuntime")) address = *bias + symbol->value;
///
/// The files are the target's: they may be truncated, changed under the reader, or made up. Files are read
/// (pread), never mapped, so that one that shrinks can't raise SIGBUS.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memattach/base/address.h"
#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"

struct Elf;

namespace memattach::elf {

struct Segment {  ///< PT_LOAD
    std::uint64_t address = 0;
    std::uint64_t file_offset = 0;
    std::uint64_t file_bytes = 0;
    std::uint64_t memory_bytes = 0;
    bool writable = false;
    bool executable = false;
};

struct Section {
    std::uint64_t address = 0;
    std::uint64_t file_offset = 0;
    std::uint64_t size_bytes = 0;
};

struct Symbol {
    std::uint64_t value = 0;  ///< an address before the load bias is added
    std::uint64_t size_bytes = 0;
    std::string_view table;  ///< ".dynsym" or ".symtab"
};

class Image {
  public:
    /// Takes the file over. Nothing where it isn't an ELF file of this machine's kind (x86-64).
    static std::optional<Image> open(base::UniqueFd file);
    /// The same on bytes that are in memory already; they must outlive the image.
    static std::optional<Image> open(std::span<const std::byte> bytes);

    Image(Image&&) noexcept;
    Image& operator=(Image&&) noexcept;
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;
    ~Image();

    [[nodiscard]] const std::vector<Segment>& segments() const { return segments_; }
    [[nodiscard]] const std::string& build_id() const { return build_id_; }  ///< hex; empty: none
    [[nodiscard]] bool is_position_independent() const { return position_independent_; }

    [[nodiscard]] std::optional<Section> find_section(std::string_view name) const;

    /// A defined symbol of that name, from .dynsym or else from .symtab.
    [[nodiscard]] std::optional<Symbol> find_symbol(std::string_view name) const;

    /// What was added to the file's addresses when it was loaded, told from where its segments are mapped;
    /// nothing where none of `mappings` (of this file) fits.
    [[nodiscard]] std::optional<std::uint64_t> load_bias(std::span<const process::Mapping> mappings) const;

    [[nodiscard]] Elf* handle() const { return elf_.get(); }
    [[nodiscard]] int file() const { return file_.get(); }  ///< −1 where it was opened on bytes

  private:
    struct End {
        void operator()(Elf* elf) const;
    };
    Image() = default;
    static std::optional<Image> read(base::UniqueFd file, Elf* elf);

    base::UniqueFd file_;
    std::unique_ptr<Elf, End> elf_;  // after file_: it reads from it until its end
    std::vector<Segment> segments_;
    std::string build_id_;
    bool position_independent_ = false;
};

}  // namespace memattach::elf
