#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/python/linetable.h"
#include "memattach/python/reader.h"
#include "unicode.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxCodeHeadBytes = 1024;
constexpr std::size_t kMaxLineTableBytes = 4U << 20U;
/// How much of the line table is compared again when a code object is confirmed: all of it for nearly all
/// functions.
constexpr std::size_t kTableSampleBytes = 256;
constexpr std::size_t kMaxLineBytes = 32U << 20U;
constexpr std::size_t kFrontSlots = 4096;

/// What a code object refers to. Another one at the same address differs in some of it.
struct CodeHead {
    std::uint64_t type = 0;
    std::uint64_t filename = 0;
    std::uint64_t name = 0;
    std::uint64_t qualname = 0;
    std::uint64_t linetable = 0;
    std::int32_t first_line = 0;
    bool operator==(const CodeHead&) const = default;
};

struct Code {
    CodeHead head;
    std::vector<std::byte> table_sample;  ///< from bytes.size of the line table on
    std::vector<LineEntry> lines;
    trace::FunctionId function{};
    std::uint64_t confirmed_ns = 0;
    bool readable = false;
    bool trampoline = false;
    std::int32_t last_offset = -2;
    std::uint32_t last_line = 0;
};

/// Where the words of CodeHead lie, as one stretch of bytes.
class CodeShape {
  public:
    explicit CodeShape(const Layout& layout)
        : type_(layout.object.type),
          filename_(layout.code.filename),
          name_(layout.code.name),
          qualname_(layout.code.qualname),
          linetable_(layout.code.linetable),
          first_line_(layout.code.firstlineno) {
        for (const Offset offset : {type_, filename_, name_, qualname_, linetable_, first_line_}) {
            if (offset == kAbsent) continue;
            end_ = std::max(end_, offset + 8);
        }
        const bool known =
            filename_ != kAbsent && name_ != kAbsent && linetable_ != kAbsent && first_line_ != kAbsent;
        if (!known || end_ > kMaxCodeHeadBytes) {
            base::throw_error("the code object layout for this Python makes no sense");
        }
    }

    [[nodiscard]] std::uint32_t bytes() const { return end_; }

    [[nodiscard]] CodeHead parse(const std::byte* bytes) const {
        const auto word = [&](Offset offset) {
            std::uint64_t value = 0;
            if (offset != kAbsent) std::memcpy(&value, bytes + offset, sizeof value);
            return value;
        };
        CodeHead head{word(type_), word(filename_), word(name_), word(qualname_), word(linetable_), 0};
        std::memcpy(&head.first_line, bytes + first_line_, sizeof head.first_line);
        return head;
    }

  private:
    Offset type_;
    Offset filename_;
    Offset name_;
    Offset qualname_;
    Offset linetable_;
    Offset first_line_;
    std::uint32_t end_ = 0;
};

}  // namespace

struct CodeCache::Impl {
    Impl(const process::Memory& memory_in, const Runtime& runtime, trace::FunctionTable& table_in,
         const Options& options_in)
        : memory(memory_in), layout(runtime.layout), shape(layout), table(table_in), options(options_in) {
        const auto marker = [&](const char* name) {
            return trace::Frame{table.intern({name, "", 0, trace::FunctionKind::marker}), 0};
        };
        truncated = marker("[truncated]");
        unknown = marker("[unknown frame]");
    }

    /// Whether the object is one of type "code": anything else that a garbled frame points at would give
    /// garbage.
    bool is_code_type(std::uint64_t type) {
        if (layout.object.type == kAbsent || layout.type.name == kAbsent) return true;
        if (type == code_type) return true;
        const auto name = memory.read_address(base::Address(type) + layout.type.name);
        if (!name || memory.read_c_string(*name, 8) != "code") return false;
        code_type = type;
        return true;
    }

    [[nodiscard]] std::vector<std::byte> read_table(std::uint64_t object,
                                                    std::vector<std::byte>& sample) const {
        std::int64_t size = 0;
        const auto length = memory.read<std::int64_t>(base::Address(object) + layout.bytes.size);
        if (!length || *length < 0 || static_cast<std::uint64_t>(*length) > kMaxLineTableBytes) return {};
        size = *length;
        // From ob_size on, so that the sample tells a table of another length too.
        const std::size_t skip = layout.bytes.data - layout.bytes.size;
        std::vector<std::byte> bytes(skip + static_cast<std::size_t>(size));
        if (!memory.read_exactly(base::Address(object) + layout.bytes.size, bytes)) return {};
        sample.assign(bytes.begin(),
                      bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), kTableSampleBytes)));
        bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(skip));
        return bytes;
    }

    void read(base::Address address, Code& code, std::uint64_t now) {
        code = Code{};
        code.confirmed_ns = now;
        std::array<std::byte, kMaxCodeHeadBytes> bytes;
        if (!memory.read_exactly(address, std::span(bytes).first(shape.bytes()))) return;
        code.head = shape.parse(bytes.data());
        if (!is_code_type(code.head.type)) return;
        const bool has_qualname = layout.code.qualname != kAbsent;
        const auto name =
            read_unicode(memory, layout, base::Address(has_qualname ? code.head.qualname : code.head.name));
        const auto file = read_unicode(memory, layout, base::Address(code.head.filename));
        if (!name || !file) return;
        const auto first_line = static_cast<std::uint32_t>(std::max(code.head.first_line, 0));
        const auto line_table = read_table(code.head.linetable, code.table_sample);
        code.lines = decode_line_table(layout.line_table_kind, line_table, first_line);
        code.lines.shrink_to_fit();
        line_bytes += code.lines.size() * sizeof(LineEntry);
        // _Py_InitCleanup (3.12+, Python/specialize.c) runs below an __init__ that the interpreter called
        // itself: a static code object without lines whose file is its name.
        code.trampoline = code.head.filename == code.head.name &&
                          std::all_of(code.lines.begin(), code.lines.end(),
                                      [](const LineEntry& entry) { return entry.line == 0; });
        code.function = table.intern({*name, *file, first_line, trace::FunctionKind::python});
        code.readable = true;
    }

    Code& entry(base::Address address, std::uint64_t now) {
        const std::size_t slot = std::hash<base::Address>{}(address) % kFrontSlots;
        if (front[slot].code != nullptr && front[slot].address == address) return *front[slot].code;
        auto found = codes.find(address);
        if (found == codes.end()) {
            found = codes.try_emplace(address).first;
            read(address, found->second, now);
        }
        front[slot] = {address, &found->second};
        return found->second;
    }

    /// Reads again what the code objects of `stale` refer to, in as few calls as can be.
    void confirm(std::uint64_t now) {
        const std::size_t head_size = shape.bytes();
        buffer.resize(stale.size() * (head_size + kTableSampleBytes));
        pieces.clear();
        std::span<std::byte> left(buffer);
        for (const auto& [address, code] : stale) {
            pieces.push_back({address, left.first(head_size)});
            left = left.subspan(head_size);
            if (!code->table_sample.empty()) {
                pieces.push_back({base::Address(code->head.linetable) + layout.bytes.size,
                                  left.first(code->table_sample.size())});
                left = left.subspan(code->table_sample.size());
            }
        }
        const std::size_t arrived = memory.read_pieces(pieces);
        std::size_t piece = 0;
        for (const auto& [address, code] : stale) {
            const std::size_t needed = code->table_sample.empty() ? 1 : 2;
            bool same = piece + needed <= arrived && code->readable &&
                        shape.parse(pieces[piece].out.data()) == code->head;
            if (same && needed == 2) {
                same = std::equal(code->table_sample.begin(), code->table_sample.end(),
                                  pieces[piece + 1].out.begin());
            }
            piece += needed;
            if (same) {
                code->confirmed_ns = now;
            } else {
                read(address, *code, now);
            }
        }
    }

    void forget_if_full() {
        if (codes.size() <= options.max_codes && line_bytes <= kMaxLineBytes) return;
        line_bytes = 0;
        front.fill({});
        codes.clear();
    }

    const process::Memory& memory;
    Layout layout;
    CodeShape shape;
    trace::FunctionTable& table;
    Options options;
    trace::Frame truncated;
    trace::Frame unknown;
    std::uint64_t code_type = 0;
    std::size_t line_bytes = 0;  ///< of all line tables decoded since the cache was empty

    struct FrontSlot {
        base::Address address;
        Code* code = nullptr;
    };
    std::unordered_map<base::Address, Code> codes;
    std::array<FrontSlot, kFrontSlots> front{};

    std::vector<bool> entries;
    std::vector<Code*> stack;  ///< of the raw stack being resolved
    std::vector<std::pair<base::Address, Code*>> stale;
    std::vector<process::Memory::Piece> pieces;
    std::vector<std::byte> buffer;
};

CodeCache::CodeCache(const process::Memory& memory, const Runtime& runtime, trace::FunctionTable& table)
    : CodeCache(memory, runtime, table, Options{}) {}

CodeCache::CodeCache(const process::Memory& memory, const Runtime& runtime, trace::FunctionTable& table,
                     const Options& options)
    : impl_(std::make_unique<Impl>(memory, runtime, table, options)) {}

CodeCache::~CodeCache() = default;

void CodeCache::resolve(const RawStack& raw, trace::Stack& out, trace::LossCounts& losses) {
    Impl& impl = *impl_;
    impl.forget_if_full();
    const std::uint64_t now = base::monotonic_ns();
    const std::size_t depth = raw.frames.size();
    const std::size_t changed = depth - std::min<std::size_t>(raw.unchanged_frames, depth);
    impl.stack.clear();
    impl.stale.clear();
    for (std::size_t i = 0; i < depth; ++i) {
        Code& code = impl.entry(raw.frames[i].code, now);
        impl.stack.push_back(&code);
        const std::uint64_t trust =
            i < changed ? impl.options.trust_changed_ns : impl.options.trust_unchanged_ns;
        if (now - code.confirmed_ns > trust) {
            code.confirmed_ns = now;  // once, however often the stack has it
            impl.stale.emplace_back(raw.frames[i].code, &code);
        }
    }
    if (!impl.stale.empty()) impl.confirm(now);

    out.clear();
    impl.entries.clear();
    bool unreadable = raw.broken;
    for (std::size_t i = 0; i < depth; ++i) {
        Code& code = *impl.stack[i];
        if (code.readable && code.trampoline) continue;
        impl.entries.push_back(raw.frames[i].entry);
        if (!code.readable) {
            out.push_back(impl.unknown);
            unreadable = true;
            continue;
        }
        const std::int32_t offset = raw.frames[i].instr_offset;
        if (offset != code.last_offset) {
            code.last_offset = offset;
            code.last_line = line_at(code.lines, offset);
            // A module that has not begun: its first instruction belongs to no line.
            if (offset < 0 && code.last_line == 0)
                code.last_line = static_cast<std::uint32_t>(std::max(code.head.first_line, 0));
        }
        out.push_back({code.function, code.last_line});
    }
    if (raw.broken) out.push_back(impl.unknown);
    if (raw.truncated) out.push_back(impl.truncated);
    impl.entries.resize(out.size());
    if (unreadable) ++losses[trace::Loss::unreadable_stacks];
    if (raw.truncated) ++losses[trace::Loss::truncated_stacks];
}

const std::vector<bool>& CodeCache::entries() const {
    return impl_->entries;
}

std::size_t CodeCache::code_count() const {
    return impl_->codes.size();
}

}  // namespace memattach::python
