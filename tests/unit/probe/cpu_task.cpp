#include "memattach/probe/cpu_task.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <thread>

using namespace memattach::probe;

TEST_CASE("/proc/PID/task/TID/syscall") {
    CHECK(parse_syscall("running\n")->running);
    const auto call = parse_syscall("202 0x7f01 0x80 0x0 0x1 0x2 0x3 0x7ffc10 0x7f99\n");
    REQUIRE(call);
    CHECK_FALSE(call->running);
    CHECK(call->number == 202);
    CHECK(call->sp == 0x7ffc10);
    CHECK(call->pc == 0x7f99);
    const auto outside = parse_syscall("-1 0x7ffc10 0x7f99\n");
    REQUIRE(outside);
    CHECK(outside->number == -1);
    for (const char* text : {"", "x", "202", "202 0x1 0x2", "-1 0x1", "0x", "99999999999999999999999"})
        CHECK_FALSE(parse_syscall(text));
}

TEST_CASE("a thread that burns runs, one that waits doesn't, one that ended is no more") {
    std::atomic<int> burner_tid = 0, waiter_tid = 0;
    std::atomic<bool> stop = false;
    std::promise<void> release;
    std::thread burner([&] {
        burner_tid = ::gettid();
        while (!stop) {
        }
    });
    std::thread waiter([&] {
        waiter_tid = ::gettid();
        release.get_future().wait();
    });
    while (burner_tid == 0 || waiter_tid == 0) std::this_thread::yield();
    TaskFiles burning(::getpid(), burner_tid), waiting(::getpid(), waiter_tid);
    CHECK(burning.is_running() == true);
    while (waiting.is_running() == true) std::this_thread::yield();
    CHECK(waiting.is_running() == false);
    stop = true;
    release.set_value();
    burner.join();
    waiter.join();
    TaskFiles ended(::getpid(), burner_tid);
    CHECK_FALSE(ended.is_running());
}
