#include "memattach/process/maps.h"

#include <algorithm>
#include <charconv>

namespace memattach::process {
namespace {

/// Takes pieces off the front of one line.
class Line {
  public:
    explicit Line(std::string_view text) : rest_(text) {}

    template <typename T>
    bool number(T& value, int base) {
        const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value, base);
        if (error != std::errc() || end == rest_.data()) return false;
        rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
        return true;
    }
    bool character(char c) {
        if (rest_.empty() || rest_.front() != c) return false;
        rest_.remove_prefix(1);
        return true;
    }
    bool flag(char set, char unset, bool& value) {
        value = !rest_.empty() && rest_.front() == set;
        return character(set) || character(unset);
    }
    void spaces() { rest_.remove_prefix(std::min(rest_.find_first_not_of(' '), rest_.size())); }
    [[nodiscard]] std::string_view rest() const { return rest_; }

  private:
    std::string_view rest_;
};

/// The kernel writes a newline in a name as \012 (seq_file_path's escape set is "\n") and leaves everything
/// else, so that a name which itself contains the four characters \012 can't be told apart from it.
std::string unescaped(std::string_view path) {
    std::string out;
    for (std::size_t at; (at = path.find("\\012")) != std::string_view::npos;) {
        out += path.substr(0, at);
        out += '\n';
        path.remove_prefix(at + 4);
    }
    return out += path;
}

std::optional<Mapping> parse_line(std::string_view text) {
    Line line(text);
    Mapping m;
    std::uint64_t start = 0;
    std::uint64_t end = 0;
    const bool whole = line.number(start, 16) && line.character('-') && line.number(end, 16) &&
                       line.character(' ') && line.flag('r', '-', m.readable) &&
                       line.flag('w', '-', m.writable) && line.flag('x', '-', m.executable) &&
                       line.flag('s', 'p', m.shared) && line.character(' ') &&
                       line.number(m.file_offset, 16) && line.character(' ') &&
                       line.number(m.device_major, 16) && line.character(':') &&
                       line.number(m.device_minor, 16) && line.character(' ') && line.number(m.inode, 10);
    if (!whole || start >= end) return std::nullopt;
    m.start = base::Address(start);
    m.end = base::Address(end);
    line.spaces();
    std::string_view path = line.rest();
    constexpr std::string_view kDeleted = " (deleted)";
    if (m.inode != 0 && path.size() > kDeleted.size() &&
        path.substr(path.size() - kDeleted.size()) == kDeleted) {
        m.deleted = true;
        path.remove_suffix(kDeleted.size());
    }
    m.path = unescaped(path);
    return m;
}

}  // namespace

std::vector<Mapping> parse_maps(std::string_view text, std::size_t max_mappings) {
    std::vector<Mapping> maps;
    while (!text.empty() && maps.size() < max_mappings) {
        const std::size_t newline = std::min(text.find('\n'), text.size());
        auto mapping = parse_line(text.substr(0, newline));
        text.remove_prefix(std::min(newline + 1, text.size()));
        if (mapping && (maps.empty() || maps.back().end <= mapping->start))
            maps.push_back(std::move(*mapping));
    }
    return maps;
}

const Mapping* find_mapping(const std::vector<Mapping>& maps, base::Address address) {
    const auto after = std::upper_bound(maps.begin(), maps.end(), address,
                                        [](base::Address a, const Mapping& m) { return a < m.start; });
    if (after == maps.begin() || !std::prev(after)->contains(address)) return nullptr;
    return &*std::prev(after);
}

}  // namespace memattach::process
