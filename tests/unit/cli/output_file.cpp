#include "output_file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "memattach/base/error.h"

using namespace memattach;
using memattach::cli::OutputFile;
namespace fs = std::filesystem;

namespace {

class Directory {
  public:
    Directory() { REQUIRE(::mkdtemp(path_) != nullptr); }
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;
    ~Directory() { fs::remove_all(path_); }
    [[nodiscard]] std::string operator/(const std::string& name) const {
        return std::string(path_) + "/" + name;
    }
    [[nodiscard]] std::size_t entries() const {
        return static_cast<std::size_t>(
            std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
    }

  private:
    char path_[64] = "/tmp/memattach-unit-XXXXXX";
};

std::string contents(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

void put(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
}

std::string refusal(const std::string& path) {
    try {
        const OutputFile file(path);
    } catch (const base::Error& error) {
        return error.what();
    }
    FAIL_CHECK("accepted " << path);
    return {};
}

}  // namespace

TEST_CASE("a file appears whole or not at all") {
    const Directory directory;
    const std::string path = directory / "out.json";
    {
        OutputFile file(path);
        file.write("half");
        CHECK(!fs::exists(path));
    }
    CHECK(directory.entries() == 0);

    put(path, "old");
    {
        OutputFile file(path);
        file.write("new");
        CHECK(contents(path) == "old");
        file.commit();
    }
    CHECK(contents(path) == "new");
    CHECK(directory.entries() == 1);
}

TEST_CASE("a file that is replaced keeps its permissions") {
    const Directory directory;
    const std::string path = directory / "private.json";
    put(path, "old");
    REQUIRE(::chmod(path.c_str(), 0600) == 0);
    OutputFile file(path);
    file.commit();
    struct stat after {};
    REQUIRE(::stat(path.c_str(), &after) == 0);
    CHECK((after.st_mode & 0777U) == 0600);
}

TEST_CASE("what can't be written is refused before anything is done, by name") {
    const Directory directory;
    CHECK(refusal(directory / "missing/out.json").find("missing/out.json") != std::string::npos);
    CHECK(refusal(directory / "").find("directory") != std::string::npos);
    CHECK(refusal("/tmp").find("directory") != std::string::npos);
    put(directory / "file", "");
    CHECK(refusal(directory / "file/out.json").find("Not a directory") != std::string::npos);
    CHECK(refusal("").find("No such file") != std::string::npos);
    CHECK(refusal("/proc/out.json").find("/proc/out.json") != std::string::npos);
}

TEST_CASE("a link of one's own is followed, to its end") {
    const Directory directory;
    put(directory / "real.html", "old");
    fs::create_symlink(directory / "real.html", directory / "link.html");
    OutputFile file(directory / "link.html");
    file.write("new");
    file.commit();
    CHECK(fs::is_symlink(directory / "link.html"));
    CHECK(contents(directory / "real.html") == "new");
}

TEST_CASE("a link that another user planted where everybody may write is refused") {
    if (::geteuid() != 0) return;  // only root can make another user's link
    const Directory directory;
    const std::string shared = directory / "shared";
    fs::create_directory(shared);
    REQUIRE(::chmod(shared.c_str(), 01777) == 0);
    put(directory / "precious", "keep");
    fs::create_symlink(directory / "precious", shared + "/out.json");
    REQUIRE(::lchown((shared + "/out.json").c_str(), 12345, 12345) == 0);
    CHECK(refusal(shared + "/out.json").find("symbolic link of user 12345") != std::string::npos);

    fs::create_directory_symlink(directory / "elsewhere", shared + "/sub");
    REQUIRE(::lchown((shared + "/sub").c_str(), 12345, 12345) == 0);
    CHECK(refusal(shared + "/sub/out.json").find("symbolic link of user 12345") != std::string::npos);
    CHECK(contents(directory / "precious") == "keep");
}

TEST_CASE("a device is written as it is") {
    OutputFile file("/dev/null");
    file.write("text");
    file.commit();
    CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("a full disk is an error that names the file") {
    OutputFile file("/dev/full");
    try {
        file.write("text");
        FAIL("written");
    } catch (const base::Error& error) {
        CHECK(std::string(error.what()) == "can't write /dev/full: No space left on device");
    }
}
