#include "memattach/session/memory_lens.h"

#include <doctest/doctest.h>

#include <algorithm>

using namespace memattach;

namespace {

probe::AllocTracerStats with_windows(std::uint64_t objects, std::uint64_t mallocs) {
    probe::AllocTracerStats stats;
    stats.few_windows = {{"small objects", objects}, {"allocations by malloc", mallocs}};
    stats.notes = {"a note that is true of each"};
    return stats;
}

std::vector<std::string> notes_of(const std::vector<probe::AllocTracerStats>& parts) {
    session::MemoryAccount account;
    for (const auto& part : parts) account.add(part);
    profile::Session session;
    account.fill(session, 1 << 20);
    return session.notes;
}

bool begins(const std::string& text, const std::string& with) {
    return text.compare(0, with.size(), with) == 0;
}

}  // namespace

// A master and four workers told of their few windows one by one: eight lines, each as long as the terminal
// is wide.
TEST_CASE("what is true of several processes is told once") {
    const auto notes = notes_of({with_windows(4, 4), with_windows(6, 7), with_windows(5, 3)});
    REQUIRE(notes.size() == 3);
    CHECK(notes[0] == "a note that is true of each");
    CHECK(begins(notes[1],
                 "small objects were looked at in 4 to 6 short windows only in each of 3 processes: "));
    CHECK(
        begins(notes[2],
               "allocations by malloc were looked at in 3 to 7 short windows only in each of 3 processes: "));
}

TEST_CASE("few windows of one process") {
    const auto notes = notes_of({with_windows(1, 12)});
    REQUIRE(notes.size() == 3);
    CHECK(begins(notes[1], "small objects were looked at in 1 short window only: "));
    CHECK(begins(notes[2], "allocations by malloc were looked at in 12 short windows only: "));
}
