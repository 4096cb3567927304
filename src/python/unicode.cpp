#include "unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace memattach::python {
namespace {

struct State {
    unsigned kind = 0;  ///< bytes a code point
    bool compact = false;
    bool ascii = false;
};

/// PyASCIIObject.state holds, from the lowest bit up: interned, kind (3 bits), compact, ascii
/// (cpython/unicodeobject.h). `interned` has 2 bits, in free-threaded builds a byte or two of its own, of
/// which only the lowest two bits are used: the kind's bits are those of the first place where there is a
/// kind.
std::optional<State> state_of(std::uint32_t word) {
    for (const unsigned shift : {2U, 8U, 16U}) {
        const unsigned kind = (word >> shift) & 7U;
        if (kind == 0) continue;
        const State state{kind, ((word >> (shift + 3)) & 1U) != 0, ((word >> (shift + 4)) & 1U) != 0};
        if ((kind != 1 && kind != 2 && kind != 4) || (state.ascii && kind != 1)) return std::nullopt;
        return state;
    }
    return std::nullopt;
}

void append_utf8(std::string& out, char32_t c) {
    if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) c = 0xFFFD;
    if (c < 0x80) {
        out += static_cast<char>(c);
    } else if (c < 0x800) {
        out += static_cast<char>(0xC0U | (c >> 6U));
        out += static_cast<char>(0x80U | (c & 63U));
    } else if (c < 0x10000) {
        out += static_cast<char>(0xE0U | (c >> 12U));
        out += static_cast<char>(0x80U | ((c >> 6U) & 63U));
        out += static_cast<char>(0x80U | (c & 63U));
    } else {
        out += static_cast<char>(0xF0U | (c >> 18U));
        out += static_cast<char>(0x80U | ((c >> 12U) & 63U));
        out += static_cast<char>(0x80U | ((c >> 6U) & 63U));
        out += static_cast<char>(0x80U | (c & 63U));
    }
}

}  // namespace

std::optional<std::string> read_unicode(const process::Memory& memory, const Layout& layout,
                                        base::Address object) {
    // One read brings the head and, nearly always, all of the text.
    std::array<std::byte, 512> bytes;
    const Offset head = std::max(layout.unicode.state + 4, layout.unicode.length + 8);
    if (object.is_null() || layout.unicode.state == kAbsent || head > bytes.size()) return std::nullopt;
    const std::size_t got = memory.read_up_to(object, bytes);
    if (got < head) return std::nullopt;
    std::uint32_t word = 0;
    std::int64_t length = 0;
    std::memcpy(&word, bytes.data() + layout.unicode.state, sizeof word);
    std::memcpy(&length, bytes.data() + layout.unicode.length, sizeof length);
    const auto state = state_of(word);
    if (!state || length < 0) return std::nullopt;

    base::Address data = object + (state->ascii ? layout.unicode.ascii_size : layout.unicode.compact_size);
    std::size_t at = static_cast<std::size_t>(data - object);
    if (!state->compact) {
        const auto pointer = memory.read_address(object + layout.unicode.compact_size);
        if (!pointer) return std::nullopt;
        data = *pointer;
        at = bytes.size();  // elsewhere
    }
    const std::size_t points = std::min(static_cast<std::uint64_t>(length), std::uint64_t{kMaxNameBytes});
    const std::size_t wanted = points * state->kind;
    std::vector<std::byte> rest;
    std::span<const std::byte> text;
    if (at <= got && got - at >= wanted) {
        text = std::span(bytes).subspan(at, wanted);
    } else {
        rest.resize(wanted);
        if (!memory.read_exactly(data, rest)) return std::nullopt;
        text = rest;
    }

    std::string utf8;
    utf8.reserve(wanted);
    for (std::size_t i = 0; i < points; ++i) {
        std::uint32_t c = 0;
        std::memcpy(&c, text.data() + i * state->kind, state->kind);
        if (utf8.size() + 4 > kMaxNameBytes) {
            return utf8 + "…";
        }
        append_utf8(utf8, c);
    }
    return static_cast<std::uint64_t>(length) > points ? utf8 + "…" : utf8;
}

}  // namespace memattach::python
