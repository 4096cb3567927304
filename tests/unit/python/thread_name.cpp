#include "memattach/python/thread_name.h"

#include <doctest/doctest.h>

#include "python/fake_thread.h"

using namespace memattach;
using test::FakeInterpreter;
using test::FakeThread;

namespace {

std::optional<std::string> name_in(const FakeThread& thread) {
    return python::read_thread_name(thread.fake.memory, thread.fake.runtime, FakeInterpreter::kThread);
}

}  // namespace

TEST_CASE("a thread's name, wherever its version keeps attributes") {
    for (int minor = 8; minor <= 15; ++minor) {
        for (const bool dict : {false, true}) {
            CAPTURE(minor);
            CAPTURE(dict);
            CHECK(name_in(FakeThread(minor, dict)) == "worker");
        }
    }
}

TEST_CASE("no name where it can't be told") {
    CHECK_FALSE(name_in(FakeThread(16, false)));  // a version that isn't known
    FakeThread other(11, false);
    other.fake.put_frame(0, other.fake.add_code("main"), 2, base::Address());
    CHECK_FALSE(name_in(other));  // not started by threading
    FakeThread odd(12, false);
    odd.fake.memory.fake.write(FakeThread::kValues + 8, FakeThread::kSelf.value());
    CHECK_FALSE(name_in(odd));  // its name is no string
    FakeThread cycle(13, false);
    cycle.fake.put_frame(0, cycle.fake.add_code("f"), 2, FakeInterpreter::frame_at(1));
    CHECK_FALSE(name_in(cycle));
    FakeThread huge(10, false);
    huge.fake.memory.fake.write(FakeThread::kKeys + 32, std::int64_t{1} << 62);
    CHECK_FALSE(name_in(huge));
    CHECK_FALSE(python::read_thread_name(huge.fake.memory, huge.fake.runtime, base::Address()));
}
