#include "memattach/session/source_lines.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace memattach::session {
namespace {

constexpr std::size_t kMaxFileBytes = 16 << 20;
constexpr std::size_t kMaxTotalBytes = 64 << 20;

base::UniqueFd open_directory(const std::string& path) {
    return base::UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
}

base::UniqueFd open_below(int root, const std::string& path, std::uint64_t resolve) {
    open_how how{};
    how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    how.resolve = resolve;
    // No wrapper in glibc; Linux 5.6. On an older kernel the lines are left empty rather than read unsafely.
    return base::UniqueFd(static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof(how))));
}

}  // namespace

SourceLines::SourceLines(int pid)
    : root_(open_directory(fmt::format("/proc/{}/root", pid))),
      cwd_(open_directory(fmt::format("/proc/{}/cwd", pid))) {
    struct stat status {};
    if (::stat(fmt::format("/proc/{}", pid).c_str(), &status) == 0) uid_ = status.st_uid;
}

const SourceLines::File& SourceLines::load(const std::string& path) {
    const auto found = files_.find(path);
    if (found != files_.end()) return found->second;
    File& file = files_[path];
    if (path.empty() || path.find('\0') != std::string::npos || total_bytes_ >= kMaxTotalBytes) return file;
    const bool absolute = path.front() == '/';
    if (!(absolute ? root_ : cwd_).is_open()) return file;
    const base::UniqueFd fd = absolute
                                  ? open_below(root_.get(), path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
                                  : open_below(cwd_.get(), path, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS);
    struct stat status {};
    if (!fd.is_open() || ::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) return file;
    if (status.st_uid != uid_ && uid_ != 0 && (status.st_mode & S_IROTH) == 0) return file;
    if (status.st_size < 0 || static_cast<std::size_t>(status.st_size) > kMaxFileBytes) return file;
    file.text.resize(static_cast<std::size_t>(status.st_size));
    std::size_t have = 0;
    while (have < file.text.size()) {
        const ssize_t bytes = ::read(fd.get(), file.text.data() + have, file.text.size() - have);
        if (bytes <= 0) break;
        have += static_cast<std::size_t>(bytes);
    }
    file.text.resize(have);
    total_bytes_ += have;
    file.starts.push_back(0);
    for (std::size_t i = 0; i < file.text.size(); ++i)
        if (file.text[i] == '\n') file.starts.push_back(i + 1);
    return file;
}

std::string SourceLines::line(const std::string& path, std::uint32_t line) {
    const File& file = load(path);
    if (line == 0 || line > file.starts.size()) return {};
    const std::size_t start = file.starts[line - 1];
    std::size_t end = file.text.find('\n', start);
    if (end == std::string::npos) end = file.text.size();
    if (end > start && file.text[end - 1] == '\r') --end;
    constexpr std::size_t kMaxLineBytes = 1000;
    return file.text.substr(start, std::min(end - start, kMaxLineBytes));
}

}  // namespace memattach::session
