#include "memattach/probe/target_clock.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "memattach/probe/perf_event.h"

using namespace memattach;

namespace {

/// A process with two threads that compute.
class Busy {
  public:
    Busy() {
        int ready[2];
        REQUIRE(pipe(ready) == 0);
        pid_ = fork();
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) {
            std::thread other([] { spin(); });
            if (write(ready[1], "r", 1) != 1) _exit(1);
            spin();
        }
        char byte = 0;
        REQUIRE(read(ready[0], &byte, 1) == 1);
        close(ready[0]);
        close(ready[1]);
    }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;
    ~Busy() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    [[nodiscard]] pid_t pid() const { return pid_; }

  private:
    [[noreturn]] static void spin() {
        for (std::atomic<std::uint64_t> i{0};;) i.fetch_add(1, std::memory_order_relaxed);
    }
    pid_t pid_ = -1;
};

void pass(long ns) {
    const timespec time{0, ns};
    nanosleep(&time, nullptr);
}

}  // namespace

TEST_CASE("the processor time of threads that run, between two ticks") {
    const Busy busy;
    probe::TargetClock clock(busy.pid());
    clock.follow();
    const probe::PerfAccess access = probe::probe_perf(getpid());
    CHECK(clock.is_exact() == access.allowed);
    const std::uint64_t start = clock.read_ns();
    const std::uint64_t late_start = clock.read_late_ns();
    int still = 0;
    std::uint64_t last = start;
    for (int i = 0; i < 40; ++i) {
        pass(500'000);
        const std::uint64_t now = clock.read_ns();
        CHECK(now >= last);
        still += now == last ? 1 : 0;
        last = now;
    }
    pass(100'000'000);
    const auto exact = static_cast<double>(clock.read_ns() - start);
    const auto late = static_cast<double>(clock.read_late_ns() - late_start);
    CHECK(exact > 0);
    // The kernel's clock of the process stands still for a tick; where others keep the processors, both do.
    if (clock.is_exact() && exact > 100e6) CHECK(still < 20);
    CHECK(exact == doctest::Approx(late).epsilon(0.2));
}

TEST_CASE("a process that is gone has used nothing") {
    pid_t pid = 0;
    {
        const Busy busy;
        pid = busy.pid();
    }
    probe::TargetClock clock(pid);
    clock.follow();
    CHECK_FALSE(clock.is_exact());
    CHECK(clock.read_ns() == 0);
}
