#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "memattach/base/bytes.h"
#include "memattach/probe/emulate.h"
#include "memattach/process/proc.h"
#include "site_parts.h"

namespace memattach::probe {
namespace {

using base::Address;
using trace::AllocKind;

/// SMALL_REQUEST_THRESHOLD, Objects/obmalloc.c, since 3.3.
constexpr std::uint64_t kPymallocLimitBytes = 512;
/// What _PyMem_DebugMalloc adds: the size, the API's letter with pads before, pads behind; three words.
constexpr std::uint64_t kDebugPaddingBytes = 24;
constexpr std::size_t kMaxHooks = 4;
constexpr int kOrdinaryComparisons = 4;
constexpr std::size_t kMaxTextBytes = 64 << 20;

/// PyMemAllocatorEx, Include/cpython/pymem.h: a context and four functions that take it first.
struct Table {
    std::uint64_t context = 0;
    std::array<std::uint64_t, 4> functions{};  ///< malloc, calloc, realloc, free
};

struct Domain {
    Address slot;       ///< of the table's `malloc` pointer; the others follow
    Table table;        ///< as it is now
    Table base;         ///< behind debug hooks and the like: who serves in the end
    Address base_slot;  ///< of the base's `malloc` pointer: `slot`, or in the state of the last hook
    bool debug = false;
    bool hooked = false;
};

struct Domains {
    std::optional<Domain> raw, mem, object;
};

class Finder {
  public:
    explicit Finder(const SiteContext& context) : context_(context) {}

    Domains find() {
        Domains domains = by_code();
        if (!domains.object) domains = in_runtime();
        for (auto* domain : {&domains.raw, &domains.mem, &domains.object}) {
            if (*domain) follow_hooks(**domain);
        }
        return domains;
    }

  private:
    [[nodiscard]] std::optional<Table> table_in(std::span<const std::byte> bytes, std::size_t offset) const {
        const auto table = base::read_at<Table>(bytes, offset);
        if (!table) return std::nullopt;
        for (const std::uint64_t function : table->functions) {
            if (!context_.is_executable(Address(function))) return std::nullopt;
        }
        if (table->context != 0 && context_.is_executable(Address(table->context))) return std::nullopt;
        return table;
    }

    /// 3.12 and later: struct _pymem_allocators in _PyRuntime has the three tables side by side, in the order
    /// raw, mem, obj. Nothing else in there looks like it (tracemalloc's copy of them, outside, does).
    [[nodiscard]] Domains in_runtime() const {
        std::vector<std::byte> bytes(std::min<std::size_t>(context_.runtime.layout.runtime.size, 16 << 10));
        bytes.resize(context_.memory.read_up_to(context_.runtime.address, bytes));
        for (std::size_t at = 0; at + 3 * sizeof(Table) <= bytes.size(); at += 8) {
            const auto raw = table_in(bytes, at);
            if (!raw) continue;
            const auto mem = table_in(bytes, at + sizeof(Table));
            const auto object = table_in(bytes, at + 2 * sizeof(Table));
            if (!mem || !object) continue;
            const Address start = context_.runtime.address + at + 8;
            const auto domain = [&](std::size_t i, const Table& table) {
                return Domain{start + i * sizeof(Table), table, table, start + i * sizeof(Table)};
            };
            return {domain(0, *raw), domain(1, *mem), domain(2, *object)};
        }
        return {};
    }

    /// Static variables up to 3.11, part of _PyRuntime later. The exported functions load from them near
    /// their start, mostly relative to the instruction pointer: four bytes there that, taken as such a
    /// displacement, lead to four function pointers in a row can be nothing else.
    [[nodiscard]] Domains by_code() const {
        return {by_code("PyMem_RawMalloc"), by_code("PyMem_Malloc"), by_code("PyObject_Malloc")};
    }

    [[nodiscard]] std::optional<Domain> by_code(std::string_view name) const {
        const auto function = context_.resolve(name);
        if (!function) return std::nullopt;
        std::array<std::byte, 96> code{};
        const std::size_t got = context_.memory.read_up_to(function->symbol.address, code);
        const auto bytes = std::span<const std::byte>(code).first(got);
        for (std::size_t at = 1; at + 4 <= bytes.size(); ++at) {
            const std::int64_t displacement = *base::read_at<std::int32_t>(bytes, at);
            const Address slot = function->symbol.address + at + 4 + static_cast<std::uint64_t>(displacement);
            if (slot.value() % 8 != 0) continue;
            const process::Mapping* mapping = process::find_mapping(context_.maps, slot);
            if (mapping == nullptr || !mapping->writable) continue;
            std::array<std::byte, sizeof(Table)> around{};
            if (!context_.memory.read_exactly(slot - 8, around)) continue;
            if (const auto table = table_in(around, 0)) return Domain{slot, *table, *table, slot};
        }
        return std::nullopt;
    }

    /// The debug hooks' context is {char api; PyMemAllocatorEx}, tracemalloc's is a PyMemAllocatorEx.
    void follow_hooks(Domain& domain) const {
        for (std::size_t i = 0; i < kMaxHooks && domain.base.context != 0; ++i) {
            std::array<std::byte, 8 + sizeof(Table)> bytes{};
            if (!context_.memory.read_exactly(Address(domain.base.context), bytes)) return;
            const char api = static_cast<char>(bytes[0]);
            if (api == 'r' || api == 'm' || api == 'o') {
                if (const auto next = table_in(bytes, 8)) {
                    domain.base_slot = Address(domain.base.context) + 16;
                    domain.base = *next;
                    domain.debug = true;
                    continue;
                }
            }
            if (const auto next = table_in(bytes, 0)) {
                domain.base_slot = Address(domain.base.context) + 8;
                domain.base = *next;
                domain.hooked = true;
                continue;
            }
            return;  // an allocator with a state of its own
        }
    }

    const SiteContext& context_;
};

std::vector<std::byte> read_text(const SiteContext& context) {
    const std::uint64_t length = context.runtime.text_end.value() - context.runtime.text_start.value();
    std::vector<std::byte> text(std::min<std::uint64_t>(length, kMaxTextBytes));
    text.resize(context.memory.read_up_to(context.runtime.text_start, text));
    return text;
}

/// How often the code compares something with each of `functions`: `cmp $imm32, %reg` in fixed-address
/// executables, `lea function(%rip), %reg` with a `cmp` of two registers soon behind it elsewhere. That is
/// how inlined fast paths show.
std::array<int, 4> count_comparisons(const std::vector<std::byte>& text, Address start,
                                     const std::array<std::uint64_t, 4>& functions) {
    std::array<int, 4> counts{};
    const auto* code = reinterpret_cast<const std::uint8_t*>(text.data());
    const auto note = [&](std::uint64_t address) {
        for (std::size_t i = 0; i < functions.size(); ++i) counts[i] += functions[i] == address ? 1 : 0;
    };
    for (std::size_t at = 1; at + 32 < text.size(); ++at) {
        if ((code[at - 1] & 0xf8) != 0x48) continue;  // REX.W
        std::int32_t word = 0;
        if (code[at] == 0x3d) {  // cmp $imm32, %rax
            std::memcpy(&word, code + at + 1, sizeof word);
            if (word > 0) note(static_cast<std::uint64_t>(word));
        } else if (code[at] == 0x81 && code[at + 1] >= 0xf8) {  // cmp $imm32, %reg
            std::memcpy(&word, code + at + 2, sizeof word);
            if (word > 0) note(static_cast<std::uint64_t>(word));
        } else if (code[at] == 0x8d && (code[at + 1] & 0xc7) == 0x05) {  // lea rel32(%rip), %reg
            std::memcpy(&word, code + at + 2, sizeof word);
            const std::uint64_t address =
                start.value() + at + 6 + static_cast<std::uint64_t>(std::int64_t{word});
            if (std::find(functions.begin(), functions.end(), address) == functions.end()) continue;
            for (std::size_t i = at + 6; i < at + 26; ++i) {
                if ((code[i] & 0xf8) == 0x48 && (code[i + 1] == 0x39 || code[i + 1] == 0x3b)) {
                    note(address);
                    break;
                }
            }
        }
    }
    return counts;
}

/// Another address that leads to `function` and nowhere else; see Redirect.
std::optional<std::uint64_t> find_alias(const SiteContext& context, const std::vector<std::byte>& text,
                                        Address function) {
    if (starts_with_endbr64(context.memory, function)) return function.value() + 4;
    // What fills the gap in front of it: a no-op of up to 15 bytes that ends where the function begins.
    for (std::uint64_t length = 1; length <= 15; ++length) {
        std::array<std::byte, 16> before{};
        if (context.memory.read_up_to(function - length, before) < length) break;
        const auto instruction = decode(before);
        if (instruction && instruction->op == Op::nop && instruction->length == length)
            return function.value() - length;
    }
    for (std::size_t at = 0; at + 5 <= text.size(); ++at) {
        if (text[at] != std::byte{0xe9}) continue;  // jmp rel32
        std::int32_t displacement;
        std::memcpy(&displacement, text.data() + at + 1, sizeof displacement);
        const std::uint64_t here = context.runtime.text_start.value() + at;
        if (here + 5 + static_cast<std::uint64_t>(std::int64_t{displacement}) == function.value())
            return here;
    }
    return std::nullopt;
}

struct Function {
    std::string_view name;
    SiteKind kind;
    Arguments args;
};
// All take the table's context first.
constexpr std::array kFunctions = {
    Function{"malloc", SiteKind::allocate, {.size = Argument::rsi}},
    Function{"calloc", SiteKind::allocate, {.size = Argument::rdx, .count = Argument::rsi}},
    Function{"realloc", SiteKind::reallocate, {.size = Argument::rdx, .old = Argument::rsi}},
    Function{"free", SiteKind::release, {.old = Argument::rsi}},
};

bool asks_for_mimalloc(const SiteContext& context) {
    if (context.runtime.free_threaded) return true;
    return process::read_variable(context.pid, "PYTHONMALLOC").value_or("").starts_with("mimalloc");
}

}  // namespace

bool starts_with_endbr64(const process::Memory& memory, base::Address a) {
    return memory.read<std::uint32_t>(a) == 0xfa1e0ff3;
}

void add_object_sites(const SiteContext& context, SiteMap& map) {
    map.interpreter_text.push_back({context.runtime.text_start, context.runtime.text_end});
    const Domains domains = Finder(context).find();
    if (!domains.object) {
        map.notes.emplace_back("small objects can't be seen: this build's table of allocators was not found");
        return;
    }
    const Domain& object = *domains.object;
    const bool plain_malloc = domains.raw && object.base.functions[0] == domains.raw->base.functions[0];
    const bool mimalloc = !plain_malloc && asks_for_mimalloc(context);
    map.object_name = plain_malloc   ? (object.debug ? "malloc_debug" : "malloc")
                      : mimalloc     ? (object.debug ? "mimalloc_debug" : "mimalloc")
                      : object.debug ? "pymalloc_debug"
                                     : "pymalloc";
    if (object.hooked) map.object_name += ", hooked";

    std::vector<std::byte> text;
    std::array<int, 4> comparisons{};
    // What stands in front calls through a table of its own, a hook's being one that the program may put
    // back.
    const bool own_table = !object.hooked;
    if (own_table) {
        text = read_text(context);
        comparisons = count_comparisons(text, context.runtime.text_start, object.base.functions);
    }
    for (const auto& domain : {domains.object, domains.mem}) {
        if (!domain) continue;
        if (domains.raw && domain->base.functions[0] == domains.raw->base.functions[0]) continue;
        for (std::size_t i = 0; i < kFunctions.size(); ++i) {
            const Address function(domain->base.functions[i]);
            const bool endbr64 = starts_with_endbr64(context.memory, function);
            const Address start = endbr64 ? function + 4 : function;
            const bool known = std::any_of(map.sites.begin(), map.sites.end(),
                                           [&](const Site& site) { return site.address == start; });
            if (!known) {
                Site site;
                site.address = start;
                site.kind = kFunctions[i].kind;
                site.group = AllocKind::object;
                site.args = kFunctions[i].args;
                site.limit_bytes = mimalloc ? 0 : kPymallocLimitBytes;
                site.padding_bytes = domain->debug ? kDebugPaddingBytes : 0;
                site.symbol =
                    std::string(mimalloc ? "mimalloc " : "pymalloc ") + std::string(kFunctions[i].name);
                site.module = context.runtime.module_path;
                map.sites.push_back(std::move(site));
                // realloc moves a block through malloc and free, calloc may go through malloc.
                if (kFunctions[i].name == "realloc" || kFunctions[i].name == "calloc") {
                    if (const auto end = function_end(context, function))
                        map.inside_object.push_back({function, *end});
                }
            }
            if (domain->base.functions[i] != object.base.functions[i] || !own_table) continue;
            // _PyMem_PymallocEnabled() and its copies compare too, in every build.
            if (comparisons[i] <= (i == 0 ? kOrdinaryComparisons : 0)) continue;
            const auto alias = find_alias(context, text, function);
            if (!alias) {
                map.notes.push_back("small objects: calls of pymalloc's " + std::string(kFunctions[i].name) +
                                    " that the compiler inlined can't be seen");
                continue;
            }
            map.redirects.push_back({domain->base_slot + 8 * i, function.value(), *alias, AllocKind::object,
                                     kFunctions[i].kind == SiteKind::release});
        }
    }
}

}  // namespace memattach::probe
