#include "memattach/probe/tracer.h"

#include <doctest/doctest.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "memattach/base/clock.h"

using namespace memattach;

// What the targets call and the tests break on. The first instruction of each is what matters.
asm(R"(
.text
.globl memattach_test_push
memattach_test_push:
    push %rbx
    lea 1(%rdi), %rbx
    mov %rbx, %rax
    pop %rbx
    ret
.globl memattach_test_endbr
memattach_test_endbr:
    endbr64
    lea 1(%rdi), %rax
    ret
.globl memattach_test_vector
memattach_test_vector:
    pxor %xmm0, %xmm0
    lea 1(%rdi), %rax
    ret
)");
extern "C" long memattach_test_push(long);
extern "C" long memattach_test_endbr(long);
extern "C" long memattach_test_vector(long);

namespace {

using Function = long (*)(long);

std::uint64_t address_of(Function function) {
    return reinterpret_cast<std::uint64_t>(function);
}

/// Memory that the three processes of a test share.
struct Shared {
    probe::PatchTable patches;
    std::atomic<std::uint64_t> interrupted, hits, foreign_values, stops, steps, children, ready, thread_ends;
    std::atomic<std::uint64_t> stop_after_hits;  ///< the tracer detaches then; 0: it stays to the end
    std::atomic<std::uint64_t> asked;
    std::atomic<bool> interrupts, attached, attach_failed, detached, plant_again;
    std::atomic<std::uint64_t> signals, values_sum, group_stops;
};

class Counter final : public probe::TracerClient {
  public:
    explicit Counter(Shared& shared) : shared_(shared) {}
    void on_hit(pid_t, std::uint64_t, std::uint64_t, const user_regs_struct&) override { ++shared_.hits; }
    bool wants_null_trap() override { return shared_.hits % 64 == 63; }
    void on_null_trap(std::uint64_t, std::uint64_t) override {}
    void on_interrupted(pid_t, const user_regs_struct&, bool) override { ++shared_.interrupted; }
    void on_resumed(std::uint64_t, bool) override {}
    void on_thread_end(pid_t) override { ++shared_.thread_ends; }
    void on_child(pid_t) override { ++shared_.children; }
    void on_exec() override {}
    bool on_leader_exit() override { return false; }
    void on_time(std::uint64_t now_ns, bool& keep_running) override {
        if (tracer != nullptr && shared_.interrupts && tracer->interrupt_running(random_)) ++shared_.asked;
        const std::uint64_t limit = shared_.stop_after_hits;
        if (limit != 0 && shared_.hits >= limit) keep_running = false;
        due_ns_ = now_ns + 1'000'000;
    }
    [[nodiscard]] std::uint64_t due_ns() const override { return due_ns_; }
    bool leader_may_go() override { return true; }

    probe::Tracer* tracer = nullptr;

  private:
    Shared& shared_;
    std::uint64_t due_ns_ = 0;
    std::mt19937_64 random_{1};
};

/// Runs `target` in one process, traced by another one with a breakpoint on `function`; returns the target's
/// wait status. `shared` tells what the tracer saw.
int run_traced(Shared& shared, Function function, const std::function<int()>& target) {
    int go[2];
    REQUIRE(pipe(go) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        char byte = 0;
        if (read(go[0], &byte, 1) != 1) _exit(99);
        _exit(target());
    }
    const pid_t tracing = fork();
    REQUIRE(tracing >= 0);
    if (tracing == 0) {
        try {
            Counter counter(shared);
            probe::Tracer tracer(child, shared.patches, counter);
            counter.tracer = &tracer;
            tracer.attach();
            std::array<std::byte, 32> bytes;
            std::memcpy(bytes.data(), reinterpret_cast<const void*>(function), bytes.size());
            const auto point = probe::choose_probe_point(bytes);
            if (!point ||
                !tracer.plant(address_of(function) + point->offset, point->displaced, point->original, 1))
                _exit(3);
            shared.attached = true;
            if (write(go[1], "g", 1) != 1) _exit(4);
            tracer.run();
            tracer.detach();
            shared.stops = tracer.stats().stops;
            shared.steps = tracer.stats().steps;
            shared.detached = true;
            _exit(0);
        } catch (const std::exception&) {
            shared.attach_failed = true;
            _exit(5);
        }
    }
    close(go[1]);
    int status = 0;
    int traced_status = 0;
    close(go[0]);
    while (true) {
        REQUIRE(waitpid(child, &status, WUNTRACED) == child);
        if (!WIFSTOPPED(status)) break;
        ++shared.group_stops;
        kill(child, SIGCONT);
    }
    REQUIRE(waitpid(tracing, &traced_status, 0) == tracing);
    REQUIRE_FALSE(shared.attach_failed);
    CHECK(traced_status == 0);
    return status;
}

struct SharedMemory {
    SharedMemory()
        : shared(static_cast<Shared*>(
              mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;
    ~SharedMemory() { munmap(shared, sizeof(Shared)); }
    Shared* shared;
};

bool ptrace_permitted() {
    static const bool permitted = [] {
        const pid_t child = fork();
        if (child == 0) _exit(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0 ? 0 : 1);
        int status = 0;
        waitpid(child, &status, 0);
        return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }();
    if (!permitted) MESSAGE("skipped: ptrace is not permitted here");
    return permitted;
}

bool text_is_clean(Function function, unsigned first_byte) {
    return *reinterpret_cast<const volatile unsigned char*>(function) == first_byte;
}

int call_many(Function function, long count) {
    for (long i = 0; i < count; ++i) {
        if (function(i) != i + 1) return 1;
    }
    return 0;
}

}  // namespace

TEST_CASE("every call is seen and every result is right") {
    if (!ptrace_permitted()) return;
    for (const Function function : {memattach_test_push, memattach_test_endbr, memattach_test_vector}) {
        SharedMemory memory;
        const int status = run_traced(*memory.shared, function, [&] { return call_many(function, 3000); });
        CHECK(status == 0);
        CHECK(memory.shared->hits.load() == 3000);
        CHECK((memory.shared->steps > 0) == (function == memattach_test_vector));
    }
}

TEST_CASE("a thread that runs is stopped on request, and comes to no harm") {
    if (!ptrace_permitted()) return;
    SharedMemory memory;
    Shared& shared = *memory.shared;
    shared.interrupts = true;
    const int status = run_traced(shared, memattach_test_push, [&] {
        long sum = 0;
        while (shared.interrupted < 50) {
            for (long i = 0; i < 1'000; ++i) sum += i;
        }
        return sum % 499'500 == 0 ? call_many(memattach_test_push, 100) : 1;
    });
    CHECK(status == 0);
    CHECK(shared.hits.load() == 100);
    CHECK(shared.interrupted.load() >= 50);
    CHECK(shared.asked.load() >= shared.interrupted.load());
}

TEST_CASE("threads, also those that come while armed") {
    if (!ptrace_permitted()) return;
    SharedMemory memory;
    const int status = run_traced(*memory.shared, memattach_test_push, [] {
        std::atomic<int> wrong = 0;
        for (int round = 0; round < 20; ++round) {
            std::vector<std::thread> threads;
            for (int i = 0; i < 10; ++i) {
                threads.emplace_back([&] { wrong += call_many(memattach_test_push, 50); });
            }
            for (auto& thread : threads) thread.join();
        }
        return wrong.load();
    });
    CHECK(status == 0);
    CHECK(memory.shared->hits.load() == 20 * 10 * 50);
    CHECK(memory.shared->thread_ends.load() >= 200);
}

TEST_CASE("detaching from threads that run through the breakpoint leaves them running and the text whole") {
    if (!ptrace_permitted()) return;
    SharedMemory memory;
    Shared& shared = *memory.shared;
    shared.stop_after_hits = 500;
    const int status = run_traced(shared, memattach_test_push, [&] {
        std::atomic<int> wrong = 0;
        std::vector<std::thread> threads;
        std::thread sleeper([&] {
            timespec long_time{30, 0};
            while (!shared.detached) nanosleep(&long_time, &long_time);
        });
        for (int i = 0; i < 4; ++i) {
            threads.emplace_back([&] {
                while (!shared.detached) wrong += call_many(memattach_test_push, 10);
                wrong += call_many(memattach_test_push, 1000);
            });
        }
        for (auto& thread : threads) thread.join();
        sleeper.detach();
        return wrong == 0 && text_is_clean(memattach_test_push, 0x53) ? 0 : 1;
    });
    CHECK(status == 0);
    CHECK(shared.hits.load() >= 500);
}

TEST_CASE("a forked child runs on clean text") {
    if (!ptrace_permitted()) return;
    SharedMemory memory;
    const int status = run_traced(*memory.shared, memattach_test_push, [] {
        for (int i = 0; i < 50; ++i) {
            memattach_test_push(0);
            const pid_t child = fork();
            if (child == 0) {
                const bool clean = text_is_clean(memattach_test_push, 0x53);
                _exit(clean && call_many(memattach_test_push, 5) == 0 ? 0 : 1);
            }
            int child_status = 0;
            if (waitpid(child, &child_status, 0) != child || child_status != 0) return 1;
        }
        return 0;
    });
    CHECK(status == 0);
    CHECK(memory.shared->hits.load() == 50);
    CHECK(memory.shared->children.load() == 50);
}

TEST_CASE("a vforked child that calls what is watched, then executes another program") {
    if (!ptrace_permitted()) return;
    SharedMemory memory;
    const int status = run_traced(*memory.shared, memattach_test_push, [] {
        static int round = 0;  // not in a register: vfork returns twice
        for (round = 0; round < 20; ++round) {
            const pid_t child = vfork();
            if (child == 0) {
                if (memattach_test_push(1) != 2) _exit(1);
                execl("/bin/true", "true", static_cast<char*>(nullptr));
                _exit(2);
            }
            int child_status = 0;
            if (waitpid(child, &child_status, 0) != child || child_status != 0) return 1;
        }
        return call_many(memattach_test_push, 10);
    });
    CHECK(status == 0);
    CHECK(memory.shared->hits.load() == 10);  // the child's own don't count
    CHECK(memory.shared->children.load() == 0);
}

TEST_CASE("signals arrive, each with what its sender sent") {
    if (!ptrace_permitted()) return;
    static Shared* seen = nullptr;
    SharedMemory memory;
    seen = memory.shared;
    const int status = run_traced(*memory.shared, memattach_test_push, [] {
        struct sigaction action {};
        action.sa_flags = SA_SIGINFO;
        action.sa_sigaction = [](int, siginfo_t* info, void*) {
            ++seen->signals;
            seen->values_sum += static_cast<std::uint64_t>(info->si_value.sival_int);
        };
        sigaction(SIGRTMIN + 3, &action, nullptr);
        sigset_t block;
        sigset_t old;
        sigemptyset(&block);
        sigaddset(&block, SIGRTMIN + 3);
        sigprocmask(SIG_BLOCK, &block, &old);
        for (int i = 1; i <= 200; ++i) {
            sigval value{};
            value.sival_int = i;
            sigqueue(getpid(), SIGRTMIN + 3, value);
        }
        sigprocmask(SIG_SETMASK, &old, nullptr);
        // An alarm storm while the breakpoint is hit.
        static std::atomic<int> alarms;
        struct sigaction alarm_action {};
        alarm_action.sa_handler = [](int) { ++alarms; };
        sigaction(SIGALRM, &alarm_action, nullptr);
        itimerval timer{{0, 200}, {0, 200}};
        setitimer(ITIMER_REAL, &timer, nullptr);
        int wrong = 0;
        while (alarms < 300) wrong += call_many(memattach_test_push, 10);
        timer = {};
        setitimer(ITIMER_REAL, &timer, nullptr);
        // A trap of the program's own.
        static std::atomic<int> traps;
        struct sigaction trap_action {};
        trap_action.sa_handler = [](int) { ++traps; };
        sigaction(SIGTRAP, &trap_action, nullptr);
        raise(SIGTRAP);
        asm volatile("int3");
        return wrong == 0 && traps == 2 ? 0 : 1;
    });
    CHECK(status == 0);
    CHECK(memory.shared->signals.load() == 200);
    CHECK(memory.shared->values_sum.load() == 200 * 201 / 2);
}

TEST_CASE("a stopped target stays stopped until its sender lets it go on") {
    if (!ptrace_permitted()) return;
    SharedMemory memory;
    const int status = run_traced(*memory.shared, memattach_test_push, [] {
        for (int i = 0; i < 20; ++i) {
            if (call_many(memattach_test_push, 3) != 0) return 1;
            raise(SIGSTOP);
        }
        return 0;
    });
    CHECK(status == 0);
    CHECK(memory.shared->hits.load() == 60);
    CHECK(memory.shared->group_stops.load() == 20);
}

TEST_CASE("a target that crashes or is killed at a breakpoint ends as it would alone") {
    if (!ptrace_permitted()) return;
    SUBCASE("crash") {
        SharedMemory memory;
        const int status = run_traced(*memory.shared, memattach_test_push, [] {
            signal(SIGSEGV, SIG_DFL);
            rlimit none{0, 0};
            setrlimit(RLIMIT_CORE, &none);
            call_many(memattach_test_push, 10);
            volatile int* volatile nowhere = reinterpret_cast<volatile int*>(8);
            *nowhere = 1;
            return 0;
        });
        CHECK(WIFSIGNALED(status));
        CHECK(WTERMSIG(status) == SIGSEGV);
    }
    SUBCASE("killed by another thread") {
        SharedMemory memory;
        const int status = run_traced(*memory.shared, memattach_test_push, [] {
            std::thread killer([] {
                call_many(memattach_test_push, 20);
                kill(getpid(), SIGKILL);
            });
            while (true) call_many(memattach_test_push, 10);
            return 0;
        });
        CHECK(WIFSIGNALED(status));
        CHECK(WTERMSIG(status) == SIGKILL);
    }
}
