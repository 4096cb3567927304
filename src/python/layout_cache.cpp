#include "layout_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "memattach/base/unique_fd.h"
#include "memattach/process/proc.h"
#include "memattach/python/layout_fields.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxFileBytes = 16 << 10;

std::string default_directory() {
    const char* xdg = std::getenv("XDG_CACHE_HOME");  // NOLINT(concurrency-mt-unsafe): nobody sets it here
    if (xdg != nullptr && xdg[0] == '/') return std::string(xdg) + "/memattach";
    const char* home = std::getenv("HOME");  // NOLINT(concurrency-mt-unsafe)
    return home != nullptr && home[0] == '/' ? std::string(home) + "/.cache/memattach" : "";
}

/// Makes the directory and its parent; true where it is ours alone.
bool is_ours(const std::string& directory) {
    ::mkdir(directory.substr(0, directory.rfind('/')).c_str(), 0700);
    ::mkdir(directory.c_str(), 0700);
    struct stat status {};
    return ::lstat(directory.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
           status.st_uid == ::geteuid() && (status.st_mode & 0022) == 0;
}

std::uint64_t fnv1a(std::string_view text, std::uint64_t hash = 0xCBF29CE484222325ULL) {
    for (const char c : text) hash = (hash ^ static_cast<std::uint8_t>(c)) * 0x100000001B3ULL;
    return hash;
}

/// Changes whenever a field is added or is looked for under another name: older files are then stale.
std::string first_line() {
    std::uint64_t hash = fnv1a("memattach layout");
    for (const LayoutField& field : layout_fields()) {
        hash = fnv1a(field.name, hash);
        for (const std::string_view name : field.c_names) hash = fnv1a(name, hash);
    }
    return fmt::format("memattach layout {:016x}\n", hash);
}

}  // namespace

LayoutCache::LayoutCache(const std::string& directory)
    : directory_(directory.empty() ? default_directory() : directory) {}

std::string LayoutCache::path_of(const std::string& build_id) const {
    const bool is_hex =
        !build_id.empty() && build_id.find_first_not_of("0123456789abcdef") == std::string::npos;
    return is_hex && !directory_.empty() ? fmt::format("{}/layout-{}", directory_, build_id) : "";
}

std::string LayoutCache::to_text(const Layout& layout) {
    std::string text = first_line();
    for (const LayoutField& field : layout_fields())
        if (get(field, layout) != kAbsent) text += fmt::format("{} {}\n", field.name, get(field, layout));
    return text + fmt::format("sum {:016x}\n", fnv1a(text));
}

std::optional<Layout> LayoutCache::from_text(std::string_view text) {
    const std::string first = first_line();
    const std::size_t sum = text.rfind("sum ");
    if (text.size() > kMaxFileBytes || text.substr(0, first.size()) != first ||
        sum == std::string_view::npos ||
        text.substr(sum) != fmt::format("sum {:016x}\n", fnv1a(text.substr(0, sum))))
        return std::nullopt;
    text = text.substr(first.size(), sum - first.size());
    Layout layout;
    while (!text.empty()) {
        const std::string_view line = text.substr(0, std::min(text.find('\n'), text.size()));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        const std::size_t blank = std::min(line.find(' '), line.size());
        const auto fields = layout_fields();
        const auto field = std::find_if(fields.begin(), fields.end(), [&](const LayoutField& f) {
            return f.name == line.substr(0, blank);
        });
        Offset value = kAbsent;
        const std::string_view number = line.substr(std::min(blank + 1, line.size()));
        const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
        if (field == fields.end() || error != std::errc() || end != number.data() + number.size())
            return std::nullopt;
        field->of(layout) = value;
    }
    return layout;
}

std::optional<Layout> LayoutCache::load(const std::string& build_id) const {
    const std::string path = path_of(build_id);
    const auto text = path.empty() ? std::nullopt : process::read_file(path, kMaxFileBytes + 1);
    return text ? from_text(*text) : std::nullopt;
}

void LayoutCache::save(const std::string& build_id, const Layout& layout) const {
    const std::string path = path_of(build_id);
    if (path.empty() || !is_ours(directory_)) return;
    std::string temporary = path + ".XXXXXX";
    const base::UniqueFd file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (!file.is_open()) return;
    const std::string text = to_text(layout);
    const bool written = ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
    if (!written || ::rename(temporary.c_str(), path.c_str()) != 0) ::unlink(temporary.c_str());
}

}  // namespace memattach::python
