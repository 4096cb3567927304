#include "rescuer.h"

#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "memattach/base/clock.h"
#include "tracer_task.h"

namespace memattach::probe {

bool make_prompt() {
    sched_param realtime{};
    realtime.sched_priority = 2;  // ahead of the tracing process
    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &realtime) == 0) return true;
    setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), -20);
    return false;
}

Rescuer::Rescuer(const PatchTable& patches) : patches_(patches) {
    sem_init(&asked_, 0, 0);
    thread_ = std::thread([this] { run(); });
}

Rescuer::~Rescuer() {
    finish();
    sem_destroy(&asked_);
}

void Rescuer::ask(pid_t pid, pid_t last_stopped) {
    // The dying tracer, and so the threads' release, goes on here once the caller lets it: the rescuer must
    // be elsewhere.
    cpu_set_t others;
    const int here = sched_getcpu();
    const pid_t rescuer = own_tid_.load(std::memory_order_acquire);
    if (rescuer != 0 && here >= 0 && sched_getaffinity(getpid(), sizeof others, &others) == 0) {
        CPU_CLR(static_cast<std::size_t>(here), &others);
        shares_processor_.store(
            CPU_COUNT(&others) == 0 || sched_setaffinity(rescuer, sizeof others, &others) != 0,
            std::memory_order_relaxed);
    }
    pid_ = pid;
    last_stopped_ = last_stopped;
    sem_post(&asked_);
}

void Rescuer::wait_ready() const {
    constexpr std::uint64_t kPatienceNs = 1'000'000;
    const std::uint64_t start = base::monotonic_ns();
    while (!shares_processor_.load(std::memory_order_relaxed) && !ready_.load(std::memory_order_acquire) &&
           base::monotonic_ns() - start < kPatienceNs) {
        __builtin_ia32_pause();
    }
}

void Rescuer::finish() {
    if (!thread_.joinable()) return;
    sem_post(&asked_);
    thread_.join();
}

void Rescuer::run() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    make_prompt();
    own_tid_.store(gettid(), std::memory_order_release);
    while (sem_wait(&asked_) != 0) {
    }
    if (pid_ == 0) return;
    const std::vector<pid_t> stopped = stopped_threads();
    ready_.store(true, std::memory_order_release);
    for (const pid_t tid : seize(stopped)) put_back(tid);
}

/// Only in a stop can a thread stand where it must not. A sleeping one is not to be disturbed.
std::vector<pid_t> Rescuer::stopped_threads() const {
    constexpr std::size_t kMost = 64;
    std::vector<pid_t> threads = {last_stopped_};
    for (const pid_t tid : tasks_of(pid_)) {
        if (tid != last_stopped_ && threads.size() < kMost) threads.push_back(tid);
    }
    std::erase_if(threads, [](pid_t tid) { return tid == 0 || state_of(tid) != 't'; });
    return threads;
}

/// Tries until the kernel lets go of the threads.
std::vector<pid_t> Rescuer::seize(std::vector<pid_t> threads) const {
    constexpr std::uint64_t kPatienceNs = 100'000'000;
    const std::uint64_t start = base::monotonic_ns();
    std::vector<pid_t> seized;
    seized.reserve(threads.size());
    while (!threads.empty() && base::monotonic_ns() - start < kPatienceNs) {
        std::erase_if(threads, [&](pid_t tid) {
            if (ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) != 0) return errno != EPERM;
            ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr);
            seized.push_back(tid);
            return true;
        });
        if (shares_processor_.load(std::memory_order_relaxed)) ::usleep(20);
    }
    return seized;
}

void Rescuer::put_back(pid_t tid) const {
    int status = 0;
    if (::waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status)) return;
    user_regs_struct regs{};
    if (ptrace(PTRACE_GETREGS, tid, nullptr, &regs) == 0 &&
        stands_behind_int3(patches_, regs.rip, regs.rsp)) {
        --regs.rip;
        ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
    }
    const long signal = status >> 16 == PTRACE_EVENT_STOP ? 0 : WSTOPSIG(status);
    ptrace(PTRACE_DETACH, tid, nullptr, reinterpret_cast<void*>(signal));
}

}  // namespace memattach::probe
