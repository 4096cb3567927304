#include "memattach/elf/dwarf_types.h"

#include <dwarf.h>
#include <elfutils/libdw.h>

#include <algorithm>
#include <map>

namespace memattach::elf {
namespace {

constexpr int kMaxTypeDepth = 16;  ///< typedefs, qualifiers and nested members; real ones need 5
constexpr std::size_t kMaxUnits = 100'000;
constexpr std::size_t kMaxChildren = 1'000'000;

std::string_view name_of(Dwarf_Die* die) {
    const char* name = dwarf_diename(die);
    return name != nullptr ? std::string_view(name) : std::string_view();
}

/// Follows typedefs and qualifiers to what they stand for.
bool strip(Dwarf_Die* die) {
    for (int depth = 0; depth < kMaxTypeDepth; ++depth) {
        switch (dwarf_tag(die)) {
            case DW_TAG_typedef:
            case DW_TAG_const_type:
            case DW_TAG_volatile_type:
            case DW_TAG_atomic_type: {
                Dwarf_Attribute attribute;
                Dwarf_Die next;
                if (dwarf_attr_integrate(die, DW_AT_type, &attribute) == nullptr ||
                    dwarf_formref_die(&attribute, &next) == nullptr)
                    return false;
                *die = next;
                break;
            }
            default:
                return true;
        }
    }
    return false;
}

bool is_declaration(Dwarf_Die* die) {
    Dwarf_Attribute attribute;
    bool flag = false;
    return dwarf_attr(die, DW_AT_declaration, &attribute) != nullptr &&
           dwarf_formflag(&attribute, &flag) == 0 && flag;
}

std::optional<std::uint64_t> member_offset(Dwarf_Die* member) {
    Dwarf_Attribute attribute;
    Dwarf_Word value = 0;
    if (dwarf_attr(member, DW_AT_data_member_location, &attribute) == nullptr)
        return dwarf_attr(member, DW_AT_data_bit_offset, &attribute) != nullptr &&
                       dwarf_formudata(&attribute, &value) == 0
                   ? std::optional(value / 8)
                   : std::optional<std::uint64_t>(0);  // a union's members have no location
    if (dwarf_formudata(&attribute, &value) != 0) return std::nullopt;
    return value;
}

/// Finds the member `name` of structure `die`, also within its anonymous members; `die` becomes its type.
std::optional<std::uint64_t> find_member(Dwarf_Die* die, std::string_view name, int depth = 0) {
    if (depth > kMaxTypeDepth || !strip(die)) return std::nullopt;
    Dwarf_Die child;
    if (dwarf_child(die, &child) != 0) return std::nullopt;
    std::size_t count = 0;
    do {
        if (dwarf_tag(&child) != DW_TAG_member) continue;
        const std::string_view member = name_of(&child);
        if (!member.empty() && member != name) continue;
        Dwarf_Attribute attribute;
        Dwarf_Die type;
        const auto offset = member_offset(&child);
        if (!offset || dwarf_attr(&child, DW_AT_type, &attribute) == nullptr ||
            dwarf_formref_die(&attribute, &type) == nullptr)
            continue;
        if (!member.empty()) {
            *die = type;
            return offset;
        }
        if (const auto inner = find_member(&type, name, depth + 1)) {
            *die = type;
            return *offset + *inner;
        }
    } while (++count < kMaxChildren && dwarf_siblingof(&child, &child) == 0);
    return std::nullopt;
}

}  // namespace

struct DwarfTypes::Impl {
    struct End {
        void operator()(Dwarf* handle) const { dwarf_end(handle); }
    };
    std::unique_ptr<Dwarf, End> dwarf;
    std::map<std::string, Dwarf_Die, std::less<>> found;
    std::vector<std::string> required;  ///< those not found yet
    std::vector<std::string> optional;

    void read_unit(Dwarf_Die* unit) {
        Dwarf_Die child;
        if (dwarf_child(unit, &child) != 0) return;
        std::size_t count = 0;
        do {
            const int tag = dwarf_tag(&child);
            if (tag != DW_TAG_structure_type && tag != DW_TAG_typedef && tag != DW_TAG_enumeration_type)
                continue;
            const std::string_view name = name_of(&child);
            if (name.empty()) continue;
            auto* list = &required;
            auto at = std::find(list->begin(), list->end(), name);
            if (at == list->end()) {
                list = &optional;
                at = std::find(list->begin(), list->end(), name);
                if (at == list->end()) continue;
            }
            Dwarf_Die type = child;
            if (!strip(&type) || is_declaration(&type) || dwarf_tag(&type) == DW_TAG_pointer_type) continue;
            found.emplace(*at, type);
            list->erase(at);
        } while (++count < kMaxChildren && dwarf_siblingof(&child, &child) == 0);
    }

    [[nodiscard]] std::optional<Dwarf_Die> type_named(std::string_view name) const {
        const auto at = found.find(name);
        return at == found.end() ? std::nullopt : std::optional(at->second);
    }
};

DwarfTypes::DwarfTypes(const Image& image, const std::vector<std::string>& required,
                       const std::vector<std::string>& optional, const std::vector<std::string>& units)
    : impl_(std::make_unique<Impl>()) {
    impl_->dwarf.reset(dwarf_begin_elf(image.handle(), DWARF_C_READ, nullptr));
    impl_->required = required;
    impl_->optional = optional;
    if (!has_debug_info()) return;
    std::vector<Dwarf_Die> others;
    Dwarf_Off offset = 0;
    Dwarf_Off next = 0;
    std::size_t header_bytes = 0;
    for (std::size_t count = 0; count < kMaxUnits; ++count, offset = next) {
        if (dwarf_nextcu(impl_->dwarf.get(), offset, &next, &header_bytes, nullptr, nullptr, nullptr) != 0)
            break;
        Dwarf_Die unit;
        if (dwarf_offdie(impl_->dwarf.get(), offset + header_bytes, &unit) == nullptr) continue;
        const std::string_view path = name_of(&unit);
        const std::string_view base_name = path.substr(path.rfind('/') + 1);
        if (std::find(units.begin(), units.end(), base_name) != units.end()) {
            impl_->read_unit(&unit);
        } else {
            others.push_back(unit);
        }
    }
    for (Dwarf_Die& unit : others) {
        if (impl_->required.empty()) break;
        impl_->read_unit(&unit);
    }
}

DwarfTypes::~DwarfTypes() = default;

bool DwarfTypes::has_debug_info() const {
    Dwarf_Off next = 0;
    std::size_t header_bytes = 0;
    return impl_->dwarf != nullptr &&
           dwarf_nextcu(impl_->dwarf.get(), 0, &next, &header_bytes, nullptr, nullptr, nullptr) == 0;
}

std::optional<std::uint64_t> DwarfTypes::size_of(std::string_view type) const {
    auto die = impl_->type_named(type);
    Dwarf_Word bytes = 0;
    if (!die || dwarf_aggregate_size(&*die, &bytes) != 0) return std::nullopt;
    return bytes;
}

std::optional<std::uint64_t> DwarfTypes::offset_of(std::string_view type, std::string_view member) const {
    auto die = impl_->type_named(type);
    if (!die) return std::nullopt;
    std::uint64_t offset = 0;
    while (true) {
        const std::size_t dot = std::min(member.find('.'), member.size());
        const auto inner = find_member(&*die, member.substr(0, dot));
        if (!inner) return std::nullopt;
        offset += *inner;
        if (dot == member.size()) return offset;
        member.remove_prefix(dot + 1);
    }
}

std::optional<std::uint64_t> DwarfTypes::enumerator(std::string_view enumeration,
                                                    std::string_view name) const {
    auto die = impl_->type_named(enumeration);
    Dwarf_Die child;
    if (!die || dwarf_child(&*die, &child) != 0) return std::nullopt;
    std::size_t count = 0;
    do {
        if (dwarf_tag(&child) != DW_TAG_enumerator || name_of(&child) != name) continue;
        Dwarf_Attribute attribute;
        Dwarf_Word value = 0;
        if (dwarf_attr(&child, DW_AT_const_value, &attribute) != nullptr &&
            dwarf_formudata(&attribute, &value) == 0)
            return value;
    } while (++count < kMaxChildren && dwarf_siblingof(&child, &child) == 0);
    return std::nullopt;
}

}  // namespace memattach::elf
