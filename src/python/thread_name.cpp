#include "memattach/python/thread_name.h"

#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include "memattach/trace/frame.h"
#include "unicode.h"

namespace memattach::python {
namespace {

/// How an instance finds its attributes.
enum class Instance : std::uint8_t {
    dict_offset,    ///< 3.8–3.10: the type says where the pointer to its dict is
    values_word,    ///< 3.11: a pointer to its values four words before it, to its dict three words before it
    tagged_word,    ///< 3.12: one word three words before it: the dict, or the values − 1
    inline_values,  ///< 3.13+: the values follow the object; the dict, if any, is three words before it (one
                    ///< word where there is no GIL)
};

/// What the headers of a version fix for every build: PyHeapTypeObject.ht_cached_keys
/// (cpython/object.h), PyDictKeysObject and PyDictValues (internal/pycore_dict.h, before 3.11
/// Objects/dict-common.h), how an instance leads to them (internal/pycore_object.h). What follows a PyObject
/// is 16 bytes further on in free-threaded builds, whose head is larger.
struct Row {
    int minor;
    Instance instance;
    Offset cached_keys;
    bool log2_sizes;  ///< the keys' head is that of 3.11 and newer
    Offset values;    ///< where the pointers begin in PyDictValues
};
constexpr Row kRows[] = {
    {8, Instance::dict_offset, 872, false, 0},   {9, Instance::dict_offset, 864, false, 0},
    {10, Instance::dict_offset, 872, false, 0},  {11, Instance::values_word, 872, true, 0},
    {12, Instance::tagged_word, 880, true, 0},   {13, Instance::inline_values, 880, true, 8},
    {14, Instance::inline_values, 880, true, 8}, {15, Instance::inline_values, 888, true, 8},
};

constexpr Offset kHead = 16;             // sizeof(PyObject) with a GIL
constexpr Offset kTypeBasicSize = 32;    // PyTypeObject.tp_basicsize
constexpr Offset kTypeDictOffset = 288;  // PyTypeObject.tp_dictoffset
constexpr Offset kDictKeys = 32;         // PyDictObject.ma_keys
constexpr Offset kDictValues = 40;       // PyDictObject.ma_values
constexpr Offset kWord = 8;
constexpr std::int64_t kMaxObjectBytes = 4096;
/// A Thread has about a dozen attributes.
constexpr std::int64_t kMaxAttributes = 256;
constexpr std::size_t kMaxFrames = 2 * trace::kMaxStackDepth;

class NameReader {
  public:
    NameReader(const process::Memory& memory, const Runtime& runtime, const Row& row)
        : memory_(memory),
          layout_(runtime.layout),
          row_(row),
          shift_(runtime.layout.object.type + kWord - kHead),
          dict_words_(runtime.free_threaded ? 1 : 3) {}

    std::optional<std::string> of_thread(base::Address thread_state) {
        const auto self = thread_object(thread_state);
        const auto name = self ? attribute(*self, "_name") : self;
        if (!name || type_name(*name) != "str") return std::nullopt;
        const auto text = read_unicode(memory_, layout_, *name);
        if (!text || text->empty()) return std::nullopt;
        return *text;
    }

  private:
    /// The first argument of the outermost frame that isn't a trampoline: there are up to two of them around
    /// it, from 3.12 on.
    std::optional<base::Address> thread_object(base::Address thread_state) const {
        const bool has_cframe = layout_.thread.cframe != kAbsent;
        auto frame = read(thread_state, has_cframe ? layout_.thread.cframe : layout_.thread.frame);
        if (frame && has_cframe) frame = read(*frame, layout_.cframe.current_frame);
        std::array<std::optional<base::Address>, 3> outermost;
        std::size_t count = 0;
        for (; frame && count < kMaxFrames; ++count) {
            outermost[count % outermost.size()] = frame;
            frame = read(*frame, layout_.frame.previous);
        }
        if (frame) return std::nullopt;  // it changed, or is a cycle
        for (const auto& candidate : outermost)
            if (candidate && is_bootstrap(*candidate))
                return read_tagged(*candidate, layout_.frame.localsplus);
        return std::nullopt;
    }

    bool is_bootstrap(base::Address frame) const {
        const auto code = read_tagged(frame, layout_.frame.code);
        if (!code || type_name(*code) != "code") return false;
        const auto name = text_at(*code, layout_.code.name);
        const auto file = text_at(*code, layout_.code.filename);
        return name == "_bootstrap" && file && file->ends_with("threading.py");
    }

    std::optional<base::Address> attribute(base::Address object, std::string_view name) const {
        const auto type = read(object, layout_.object.type);
        if (!type) return std::nullopt;
        const auto keys = read(*type, row_.cached_keys + shift_);
        switch (row_.instance) {
            case Instance::dict_offset: {
                const auto offset = memory_.read<std::int64_t>(*type + kTypeDictOffset);
                if (!offset || *offset < kHead || *offset > kMaxObjectBytes) return std::nullopt;
                return in_dict(read(object, static_cast<Offset>(*offset)), name);
            }
            case Instance::values_word:
                if (const auto values = before(object, 4)) return in_keys(keys, values, name);
                return in_dict(before(object, 3), name);
            case Instance::tagged_word: {
                const auto word = before(object, 3);
                if (!word || (word->value() & 1U) == 0) return in_dict(word, name);
                return in_keys(keys, *word + 1, name);
            }
            case Instance::inline_values: {
                if (const auto dict = before(object, dict_words_)) return in_dict(dict, name);
                const auto size = memory_.read<std::int64_t>(*type + (kTypeBasicSize + shift_));
                if (!size || *size < kHead || *size > kMaxObjectBytes) return std::nullopt;
                return in_keys(keys, object + static_cast<std::uint64_t>(*size), name);
            }
        }
        return std::nullopt;
    }

    std::optional<base::Address> in_dict(std::optional<base::Address> dict, std::string_view name) const {
        if (!dict || type_name(*dict) != "dict") return std::nullopt;
        return in_keys(read(*dict, kDictKeys + shift_), read(*dict, kDictValues + shift_), name);
    }

    /// `values`: where the keys are shared between instances; else the values stand beside the keys.
    std::optional<base::Address> in_keys(std::optional<base::Address> keys,
                                         std::optional<base::Address> values, std::string_view name) const {
        struct Entries {
            std::uint64_t begin, bytes, key, value;
        } entries{40, 24, 8, 16};
        std::array<std::byte, 40> head;
        if (!keys || !memory_.read_exactly(*keys, head)) return std::nullopt;
        const auto count = load<std::int64_t>(head.data() + (row_.log2_sizes ? 24 : 32));
        if (row_.log2_sizes) {
            const auto log2_index_bytes = std::to_integer<unsigned>(head[9]);
            if (log2_index_bytes > 16) return std::nullopt;
            entries.begin = 32 + (std::uint64_t{1} << log2_index_bytes);
            if (std::to_integer<unsigned>(head[10]) != 0) entries = {entries.begin, 16, 0, 8};
        } else {
            const auto slots = load<std::uint64_t>(head.data() + 8);
            if (slots > 1U << 16U) return std::nullopt;
            entries.begin += slots * (slots <= 0xFF ? 1 : 2);
        }
        if (count <= 0 || count > kMaxAttributes) return std::nullopt;
        std::vector<std::byte> bytes(static_cast<std::size_t>(count) * entries.bytes);
        if (!memory_.read_exactly(*keys + entries.begin, bytes)) return std::nullopt;
        for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(count); ++i) {
            const std::byte* entry = bytes.data() + i * entries.bytes;
            const base::Address key(load<std::uint64_t>(entry + entries.key));
            if (key.is_null() || read_unicode(memory_, layout_, key) != name) continue;
            if (values) return read(*values + row_.values, static_cast<Offset>(i * kWord));
            const base::Address value(load<std::uint64_t>(entry + entries.value));
            return value.is_null() ? std::nullopt : std::optional(value);
        }
        return std::nullopt;
    }

    /// A pointer that isn't null.
    std::optional<base::Address> read(base::Address from, Offset offset) const {
        const auto pointer = memory_.read_address(from + offset);
        return pointer && !pointer->is_null() ? pointer : std::nullopt;
    }
    std::optional<base::Address> read_tagged(base::Address from, Offset offset) const {
        const auto pointer = read(from, offset);
        return pointer ? std::optional(base::Address(pointer->value() & ~layout_.stackref_tag_mask))
                       : pointer;
    }
    std::optional<base::Address> before(base::Address object, std::uint64_t words) const {
        return read(base::Address(object.value() - words * kWord), 0);
    }
    std::optional<std::string> text_at(base::Address object, Offset offset) const {
        const auto text = read(object, offset);
        return text ? read_unicode(memory_, layout_, *text) : std::nullopt;
    }
    std::string type_name(base::Address object) const {
        const auto type = read(object, layout_.object.type);
        const auto name = type ? read(*type, layout_.type.name) : type;
        return name ? memory_.read_c_string(*name, 64).value_or("") : "";
    }

    template <typename T>
    static T load(const std::byte* bytes) {
        T value;
        std::memcpy(&value, bytes, sizeof value);
        return value;
    }

    const process::Memory& memory_;
    const Layout& layout_;
    const Row& row_;
    Offset shift_;
    std::uint64_t dict_words_;
};

}  // namespace

std::optional<std::string> read_thread_name(const process::Memory& memory, const Runtime& runtime,
                                            base::Address thread_state) {
    const Layout& layout = runtime.layout;
    if (thread_state.is_null() || layout.frame.localsplus == kAbsent || layout.object.type + kWord < kHead)
        return std::nullopt;
    for (const Row& row : kRows)
        if (row.minor == runtime.version.minor)
            return NameReader(memory, runtime, row).of_thread(thread_state);
    return std::nullopt;
}

}  // namespace memattach::python
