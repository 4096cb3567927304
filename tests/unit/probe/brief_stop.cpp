#include "memattach/probe/brief_stop.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <new>

#include "memattach/process/proc.h"

using namespace memattach;
using probe::BriefStops;
using probe::StoppedRegisters;
using probe::StopResult;

namespace {

/// A child that burns, counts SIGUSR1 and ends with their number on SIGTERM.
class Burner {
  public:
    Burner() {
        void* shared =
            ::mmap(nullptr, sizeof *turns_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        REQUIRE(shared != MAP_FAILED);
        turns_ = new (shared) std::atomic<std::uint64_t>(0);
        int ends[2];
        REQUIRE(::pipe(ends) == 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            static volatile int count = 0;
            ::signal(SIGUSR1, [](int) { count = count + 1; });
            ::signal(SIGTERM, [](int) { ::_exit(count); });
            static_cast<void>(!::write(ends[1], "x", 1));
            for (;;) turns_->fetch_add(1, std::memory_order_relaxed);
        }
        char ready = 0;
        REQUIRE(::read(ends[0], &ready, 1) == 1);
        ::close(ends[0]);
        ::close(ends[1]);
    }
    ~Burner() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            ::waitpid(pid_, nullptr, 0);
        }
        ::munmap(turns_, sizeof *turns_);
    }
    /// Returns when the child has run in user mode since the call.
    void wait_for_turn() const {
        const std::uint64_t before = turns_->load();
        while (turns_->load() == before) ::sched_yield();
    }
    [[nodiscard]] int pid() const { return pid_; }
    int end() {
        ::kill(pid_, SIGTERM);
        int status = 0;
        ::waitpid(pid_, &status, 0);
        pid_ = 0;
        return status;
    }

  private:
    int pid_ = 0;
    std::atomic<std::uint64_t>* turns_ = nullptr;
};

/// On a machine that is busy a thread may wait long for the CPU that it needs to come to a stop.
StopResult stop_patiently(BriefStops& stops, int tid, StoppedRegisters& registers) {
    while (true) {
        const StopResult result = stops.stop(tid, registers);
        if (result != StopResult::late) return result;
        while (stops.has_late()) stops.let_late_go();
    }
}

}  // namespace

TEST_CASE("a brief stop shows registers and leaves nothing behind") {
    Burner burner;
    BriefStops stops;
    StoppedRegisters registers;
    for (int i = 0; i < 20; ++i) {
        burner.wait_for_turn();  // else it may not have left the system call that it was in before
        REQUIRE(stop_patiently(stops, burner.pid(), registers) == StopResult::stopped);
        CHECK(registers.values[probe::kPerfRegisterIp] != 0);
        CHECK_FALSE(registers.in_system_call);
        stops.release();
    }
    CHECK(stops.longest_ns() > 0);
    CHECK(stops.total_ns() >= stops.longest_ns());
    const auto status = process::read_status(burner.pid());
    REQUIRE(status);
    CHECK(status->tracer_pid == 0);
    CHECK(process::read_stat(burner.pid())->state == 'R');
}

TEST_CASE("signals that arrive around stops are all delivered") {
    Burner burner;
    BriefStops stops;
    StoppedRegisters registers;
    int delivered = 0;
    for (int i = 0; i < 50; ++i) {
        ::kill(burner.pid(), SIGUSR1);
        ++delivered;
        REQUIRE(stop_patiently(stops, burner.pid(), registers) == StopResult::stopped);
        stops.release();
        // An ordinary signal that is still pending swallows the next one: wait until it was taken.
        while (true) {
            const auto text = process::read_proc(burner.pid(), "status");
            REQUIRE(text);
            if (text->find("ShdPnd:\t0000000000000000") != std::string::npos) break;
        }
    }
    // SIGTERM's handler would run on top of SIGUSR1's, had that not begun yet, and so count one too few.
    burner.wait_for_turn();
    const int status = burner.end();
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == delivered);
}

TEST_CASE("a process that SIGSTOP holds goes on being held") {
    Burner burner;
    ::kill(burner.pid(), SIGSTOP);
    int status = 0;
    REQUIRE(::waitpid(burner.pid(), &status, WUNTRACED) == burner.pid());
    BriefStops stops;
    StoppedRegisters registers;
    REQUIRE(stop_patiently(stops, burner.pid(), registers) == StopResult::stopped);
    stops.release();
    // It is woken to stop again by itself (__ptrace_unlink in kernel/ptrace.c).
    while (process::read_stat(burner.pid())->state != 'T') {
    }
    ::kill(burner.pid(), SIGCONT);
    CHECK(WIFEXITED(burner.end()));
}

TEST_CASE("a thread that isn't there, and one that may not be traced") {
    BriefStops stops;
    StoppedRegisters registers;
    const int pid = ::fork();
    if (pid == 0) ::_exit(0);
    ::waitpid(pid, nullptr, 0);
    CHECK(stops.stop(pid, registers) == StopResult::gone);
    CHECK(stops.stop(::getpid(), registers) == StopResult::refused);
}
