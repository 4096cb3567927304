#include "../../../src/python/layout_cache.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "memattach/python/layout_fields.h"
#include "memattach/python/layout_sources.h"

using namespace memattach;
using python::LayoutCache;

namespace {

struct TemporaryDirectory {
    TemporaryDirectory() { REQUIRE(::mkdtemp(path.data()) != nullptr); }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    ~TemporaryDirectory() { std::filesystem::remove_all(path); }
    std::string path = "/tmp/memattach_test_XXXXXX";
};

const python::Layout& some_layout() {
    return python::built_in_layouts().front().layout;
}

bool same(const python::Layout& a, const python::Layout& b) {
    for (const python::LayoutField& field : python::layout_fields())
        if (python::get(field, a) != python::get(field, b)) return false;
    return true;
}

}  // namespace

TEST_CASE("what is saved is loaded again") {
    const TemporaryDirectory directory;
    const LayoutCache cache(directory.path + "/new");
    CHECK_FALSE(cache.load("ab12"));
    cache.save("ab12", some_layout());
    REQUIRE(cache.load("ab12"));
    CHECK(same(*cache.load("ab12"), some_layout()));
    CHECK_FALSE(cache.load("ab13"));
    CHECK(std::distance(std::filesystem::directory_iterator(directory.path + "/new"), {}) ==
          1);  // no leftovers
}

TEST_CASE("a build id that isn't hex never becomes part of a path") {
    const TemporaryDirectory directory;
    const LayoutCache cache(directory.path);
    for (const char* id : {"", "../x", "AB", "a/b"}) {
        cache.save(id, some_layout());
        CHECK_FALSE(cache.load(id));
    }
    CHECK(std::filesystem::is_empty(directory.path));
}

TEST_CASE("nothing is written where others may write") {
    const TemporaryDirectory directory;
    REQUIRE(::chmod(directory.path.c_str(), 0777) == 0);
    LayoutCache(directory.path).save("ab12", some_layout());
    CHECK(std::filesystem::is_empty(directory.path));
    const std::string link = directory.path + "/link";
    REQUIRE(::mkdir((directory.path + "/real").c_str(), 0700) == 0);
    REQUIRE(::symlink("real", link.c_str()) == 0);
    LayoutCache(link).save("ab12", some_layout());
    CHECK(std::filesystem::is_empty(directory.path + "/real"));
}

TEST_CASE("a changed byte anywhere makes the file worthless") {
    const std::string good = LayoutCache::to_text(some_layout());
    REQUIRE(LayoutCache::from_text(good));
    for (std::size_t i = 0; i < good.size(); ++i) {
        std::string bad = good;
        bad[i] = static_cast<char>(bad[i] ^ 1);
        CHECK_FALSE(LayoutCache::from_text(bad));
        CHECK_FALSE(LayoutCache::from_text(good.substr(0, i)));
    }
    CHECK_FALSE(LayoutCache::from_text(std::string(1 << 20, 'x')));
}
