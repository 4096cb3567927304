#include "output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <utility>

#include "memattach/base/error.h"
#include "memattach/base/text.h"

namespace memattach::cli {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& path, int error) {
    base::throw_error("can't write {}: {}", path == "-" ? "stdout" : base::printable(path, 300),
                      base::errno_text(error));
}

[[nodiscard]] bool others_may_write(const struct stat& directory) {
    const bool foreign = directory.st_uid != ::geteuid() && directory.st_uid != 0;
    return foreign || (directory.st_mode & (S_IWGRP | S_IWOTH)) != 0;
}

/// Refuses `path` where one of its components is a symbolic link that somebody else may have planted: it is
/// another user's, in a directory where others may write.
void check_links(const fs::path& path) {
    fs::path walked = path.is_absolute() ? "/" : ".";
    for (const fs::path& part : path.relative_path()) {
        struct stat directory {};
        struct stat entry {};
        const fs::path next = walked / part;
        if (::lstat(next.c_str(), &entry) == 0 && S_ISLNK(entry.st_mode) &&
            ::stat(walked.c_str(), &directory) == 0 && others_may_write(directory) &&
            entry.st_uid != ::geteuid() && entry.st_uid != 0) {
            base::throw_error(
                "can't write {}: {} is a symbolic link of user {} in a directory where others may write",
                base::printable(path.string(), 300), base::printable(next.string(), 300), entry.st_uid);
        }
        walked = next;
    }
}

std::string random_suffix() {
    std::array<unsigned char, 6> bytes{};
    (void)!::getrandom(bytes.data(), bytes.size(), 0);
    std::string text;
    for (const unsigned char byte : bytes) text += "abcdefghijklmnopqrstuvwxyz0123456789"[byte % 36U];
    return text;
}

}  // namespace

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
    if (is_stdout()) {
        if ((::fcntl(STDOUT_FILENO, F_GETFL) & O_ACCMODE) == O_RDONLY) fail(path_, EBADF);
        return;
    }
    check_links(path_);
    struct stat there {};
    if (::stat(path_.c_str(), &there) == 0 && !S_ISREG(there.st_mode)) {
        if (S_ISDIR(there.st_mode)) fail(path_, EISDIR);
        file_.reset(::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
        if (!file_.is_open()) fail(path_, errno);
        return;
    }
    // What is replaced is the file, not a link to it. A dangling link is refused: its end can't be judged.
    struct stat link {};
    fs::path real = path_;
    if (::lstat(path_.c_str(), &link) == 0 && S_ISLNK(link.st_mode)) {
        const std::unique_ptr<char, decltype(&std::free)> resolved(::realpath(path_.c_str(), nullptr),
                                                                   &std::free);
        if (!resolved) fail(path_, errno);
        real = resolved.get();
    }
    name_ = real.filename().string();
    if (name_.empty() || name_ == "." || name_ == "..") fail(path_, path_.empty() ? ENOENT : EISDIR);
    const fs::path parent = real.has_parent_path() ? real.parent_path() : fs::path(".");
    directory_.reset(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory_.is_open()) fail(path_, errno);
    if (S_ISREG(there.st_mode) && ::faccessat(directory_.get(), name_.c_str(), W_OK, AT_EACCESS) != 0)
        fail(path_, errno);

    constexpr int kTries = 100;
    for (int i = 0; i < kTries && !file_.is_open(); ++i) {
        temporary_ = fmt::format(".{}.memattach-{}", name_.substr(0, 200), random_suffix());
        file_.reset(::openat(directory_.get(), temporary_.c_str(),
                             O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666));
        if (!file_.is_open() && errno != EEXIST) break;
    }
    if (!file_.is_open()) {
        const int error = errno;
        temporary_.clear();
        fail(path_, error);
    }
    // A file that is written again keeps who may read it.
    if (S_ISREG(there.st_mode)) (void)::fchmod(file_.get(), there.st_mode & 0777U);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      directory_(std::move(other.directory_)),
      file_(std::move(other.file_)),
      name_(std::move(other.name_)),
      temporary_(std::exchange(other.temporary_, {})) {}

OutputFile::~OutputFile() {
    if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
}

void OutputFile::write(std::string_view text) {
    const int fd = is_stdout() ? STDOUT_FILENO : file_.get();
    while (!text.empty()) {
        const ssize_t written = ::write(fd, text.data(), text.size());
        if (written < 0) {
            if (errno == EINTR) continue;
            if (errno == EPIPE) throw PipeClosed{};
            fail(path_, errno);
        }
        text.remove_prefix(static_cast<std::size_t>(written));
    }
}

void OutputFile::commit() {
    if (temporary_.empty()) return;
    // The data first, then the name: after a crash of the machine there is the old file or the whole new one.
    if (::fsync(file_.get()) != 0 && errno != EINVAL && errno != EROFS) fail(path_, errno);
    if (::renameat(directory_.get(), temporary_.c_str(), directory_.get(), name_.c_str()) != 0)
        fail(path_, errno);
    temporary_.clear();
}

}  // namespace memattach::cli
