#include "memattach/process/target_file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "memattach/process/proc.h"

using namespace memattach;

namespace {

/// A file of one page, mapped into this process.
class MappedTestFile {
  public:
    explicit MappedTestFile(char content) {
        const base::UniqueFd fd(::mkstemp(path.data()));
        const std::string page(4096, content);
        REQUIRE(::write(fd.get(), page.data(), page.size()) == 4096);
        memory_ = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd.get(), 0);
        REQUIRE(memory_ != MAP_FAILED);
    }
    MappedTestFile(const MappedTestFile&) = delete;
    MappedTestFile& operator=(const MappedTestFile&) = delete;
    ~MappedTestFile() {
        ::munmap(memory_, 4096);
        ::unlink(path.c_str());
    }
    [[nodiscard]] process::Mapping mapping() const {
        const auto maps = process::read_maps(::getpid());
        return *process::find_mapping(maps, base::Address(reinterpret_cast<std::uint64_t>(memory_)));
    }
    std::string path = "/tmp/memattach_test_XXXXXX";

  private:
    void* memory_ = nullptr;
};

char first_byte(const process::MappedFile& file) {
    char byte = 0;
    return ::pread(file.fd.get(), &byte, 1, 0) == 1 ? byte : '?';
}

}  // namespace

TEST_CASE("a file that is where it was") {
    const MappedTestFile mapped('a');
    const auto file = process::open_mapped_file(::getpid(), mapped.mapping());
    CHECK(file.certain);
    CHECK(first_byte(file) == 'a');
}

TEST_CASE("a file that an upgrade has replaced: the mapped one, or one that is known to be uncertain") {
    const MappedTestFile mapped('a');
    const MappedTestFile replacement('b');
    REQUIRE(::rename(replacement.path.c_str(), mapped.path.c_str()) == 0);
    const auto gone = mapped.mapping();
    CHECK(gone.deleted);
    const auto file = process::open_mapped_file(::getpid(), gone);
    if (file.fd.is_open()) {  // through map_files, which takes CAP_SYS_ADMIN
        CHECK(file.certain);
        CHECK(first_byte(file) == 'a');
    } else {
        CHECK(file.why == mapped.path + " has been deleted");
    }
    // The same where the kernel doesn't say that it is deleted (the mapping was read before).
    auto stale = gone;
    stale.deleted = false;
    const auto other = process::open_mapped_file(::getpid(), stale);
    REQUIRE(other.fd.is_open());
    CHECK(other.certain == (first_byte(other) == 'a'));
}

TEST_CASE("a path that leads to something else than a regular file is not opened") {
    process::Mapping mapping;
    mapping.inode = 1;
    mapping.path = "/tmp/memattach_test_fifo_" + std::to_string(::getpid());
    REQUIRE(::mkfifo(mapping.path.c_str(), 0600) == 0);
    const auto file = process::open_mapped_file(::getpid(), mapping);  // would hang if it were opened
    ::unlink(mapping.path.c_str());
    CHECK_FALSE(file.fd.is_open());
    CHECK(file.why.find("can't be opened") != std::string::npos);
}

TEST_CASE("paths of a target that isn't chrooted stay as they are") {
    CHECK(process::path_in_target(::getpid(), "/usr/bin/python3") == "/usr/bin/python3");
    CHECK(process::path_in_target(0x7FFFFFFF, "/x") == "/x");
}
