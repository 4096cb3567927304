#include "memattach/probe/trace_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"
#include "rescuer.h"
#include "tracer_task.h"

namespace memattach::probe {
namespace {

/// For the handler of fatal signals in the tracing process.
PatchTable* crash_table = nullptr;
int crash_memory_fd = -1;

void undo_and_die(int signal) {
    undo_all_patches(*crash_table, crash_memory_fd, true);
    ::signal(signal, SIG_DFL);
    ::raise(signal);
}

/// The tracing process must outlive whatever ends the others at the terminal, and must not be what the kernel
/// kills first when memory is short. The last ones need privileges and are welcome where there are any.
void become_durable(pid_t analyser) {
    setsid();
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP, SIGTTOU, SIGTTIN}) {
        ::signal(signal, SIG_IGN);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (getppid() != analyser) _exit(0);
    prctl(PR_SET_NAME, "memattach-trace");
    // While it serves a stop, a thread of the target waits for it: other work must not come in between. It
    // sleeps nearly all the time, and the budget bounds the rest.
    sched_param realtime{};
    realtime.sched_priority = 1;
    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &realtime) != 0)
        setpriority(PRIO_PROCESS, 0, -10);
    if (const base::UniqueFd score(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
        score.is_open()) {
        if (::write(score.get(), "-500", 4) < 0) return;
    }
}

void use_dev_null() {
    const base::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!null.is_open()) return;
    ::dup2(null.get(), 0);
    ::dup2(null.get(), 1);
}

/// Whatever else was open here (outputs, other probes' events) is to end when the analysing process closes
/// it.
template <std::size_t N>
void close_other_files(std::array<int, N> keep) {
    std::sort(keep.begin(), keep.end());
    unsigned first = 3;
    for (const int fd : keep) {
        const auto kept = static_cast<unsigned>(fd);
        if (kept > first) syscall(SYS_close_range, first, kept - 1, 0);
        first = kept + 1;
    }
    syscall(SYS_close_range, first, ~0U, 0);
}

}  // namespace

TraceProcess::TraceProcess(pid_t pid, const python::Runtime& runtime, const SiteMap& sites,
                           const AllocProbeOptions& options)
    : pid_(pid) {
    memory_.reset(::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDWR | O_CLOEXEC));
    if (!memory_.is_open()) throw_not_permitted(pid, errno);
    planned_ = plan_sites(pid, process::LiveMemory(pid), sites);
    if (tracer_of(pid, pid) != 0) throw_not_permitted(pid, EPERM);
    notify_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    wake_keeper_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    int pipe_fds[2] = {-1, -1};
    if (!notify_.is_open() || ::pipe2(pipe_fds, O_CLOEXEC) != 0) {
        base::throw_error("can't start tracing: {}", base::errno_text(errno));
    }
    alive_.reset(pipe_fds[0]);
    alive_write_.reset(pipe_fds[1]);
    void* shared =
        ::mmap(nullptr, sizeof(TraceShared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) base::throw_error("can't start tracing: {}", base::errno_text(errno));
    shared_ = static_cast<TraceShared*>(shared);
    pthread_mutexattr_t robust;
    pthread_mutexattr_init(&robust);
    pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared_->alive, &robust);
    pthread_mutexattr_destroy(&robust);
    const pid_t analyser = getpid();
    shared_->analyser_pid.store(analyser);
    start_keeper(analyser, runtime, sites);
    tracer_ = ::fork();
    if (tracer_ < 0) {
        const int error = errno;
        end_keeper();
        ::munmap(shadow_, sizeof(ShadowShared));
        ::munmap(shared_, sizeof(TraceShared));
        base::throw_error("can't start the tracing process: {}", base::errno_text(error));
    }
    if (tracer_ == 0) {
        become_durable(analyser);
        use_dev_null();
        close_other_files(std::array{memory_.get(), notify_.get(), alive_write_.get(), wake_keeper_.get()});
        trace(runtime, sites, options);
    }
    alive_write_.reset();
    rescuer_ = std::make_unique<Rescuer>(shared_->patches);
    pollfd ready{notify_.get(), POLLIN, 0};
    pollfd both[2] = {ready, {alive_.get(), 0, 0}};
    while (shared_->state.load(std::memory_order_acquire) == TraceShared::starting) {
        ::poll(both, 2, 1000);
        if ((both[1].revents & POLLHUP) != 0) break;
    }
    const std::uint32_t state = shared_->state.load(std::memory_order_acquire);
    if (state == TraceShared::starting || state == TraceShared::failed) {  // else: armed, or over already
        if (state == TraceShared::failed) {  // it has undone what it did, and ends
            ::waitpid(tracer_, nullptr, 0);
            undo_all_patches(shared_->patches, memory_.get(), true);
        } else {
            repair();
        }
        end_keeper();
        rescuer_.reset();
        const std::string error(shared_->error.data());
        ::munmap(shadow_, sizeof(ShadowShared));
        ::munmap(shared_, sizeof(TraceShared));
        throw base::Error(error.empty() ? fmt::format("the tracing process was killed while it attached to "
                                                      "process {}: what it had changed there is undone",
                                                      pid)
                                        : error);
    }
    watcher_ = std::thread([this] { watch(); });
}

TraceProcess::~TraceProcess() {
    stop();
    rescuer_.reset();
    ::munmap(shadow_, sizeof(ShadowShared));
    ::munmap(shared_, sizeof(TraceShared));
}

/// Before the tracing process, whose children are its tracees. Where it can't be had, dense windows go by the
/// CPU clock.
void TraceProcess::start_keeper(pid_t analyser, const python::Runtime& runtime, const SiteMap& sites) {
    void* shadow =
        ::mmap(nullptr, sizeof(ShadowShared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shadow == MAP_FAILED) base::throw_error("can't start tracing: {}", base::errno_text(errno));
    shadow_ = static_cast<ShadowShared*>(shadow);
    keeper_ = wake_keeper_.is_open() ? ::fork() : -1;
    if (keeper_ < 0) shadow_->state.store(ShadowShared::unavailable);
    if (keeper_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != analyser) _exit(0);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP}) ::signal(signal, SIG_IGN);
    use_dev_null();
    alive_write_.reset();
    close_other_files(std::array{alive_.get(), wake_keeper_.get(), notify_.get()});
    const std::array unmapped{
        std::span(reinterpret_cast<std::byte*>(shared_), sizeof(TraceShared)),
        std::span(reinterpret_cast<std::byte*>(shadow_), sizeof(ShadowShared)),
    };
    keep_shadow(pid_, runtime, sites, planned_, shared_->patches, *shadow_,
                {wake_keeper_.get(), alive_.get(), notify_.get()}, unmapped);
}

/// It ends by itself once the tracing process has, when it has told the window that it is at.
void TraceProcess::end_keeper() {
    constexpr int kTries = 50;
    constexpr timespec kPause{0, 2'000'000};
    for (int i = 0; keeper_ > 0; ++i) {
        if (::waitpid(keeper_, nullptr, WNOHANG) != 0) {
            keeper_ = -1;
        } else if (i < kTries) {
            ::nanosleep(&kPause, nullptr);
        } else {
            ::kill(keeper_, SIGKILL);
            ::waitpid(keeper_, nullptr, 0);
            keeper_ = -1;
        }
    }
}

void TraceProcess::trace(const python::Runtime& runtime, const SiteMap& sites,
                         const AllocProbeOptions& options) {
    alive_.reset();
    pthread_mutex_lock(&shared_->alive);
    crash_table = &shared_->patches;
    crash_memory_fd = memory_.get();
    for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGSYS})
        ::signal(signal, undo_and_die);
    const auto fail = [&](const char* text) {
        std::strncpy(shared_->error.data(), text, shared_->error.size() - 1);
        std::uint32_t expected = TraceShared::starting;
        shared_->state.compare_exchange_strong(expected, TraceShared::failed);
    };
    const auto tell = [&] {
        const std::uint64_t one = 1;
        if (::write(notify_.get(), &one, sizeof one) < 0) return;
    };
    try {
        const process::LiveMemory memory(pid_);
        Shadow shadow(*shadow_, wake_keeper_.get(), memory);
        AllocProbe probe(pid_, memory, runtime, sites, planned_, options, *shared_, notify_.get(), shadow);
        Tracer tracer(pid_, shared_->patches, probe);
        tracer.keep_beside(shared_->watcher_tid);
        tracer.attach();
        probe.start(tracer);
        shared_->state.store(TraceShared::armed, std::memory_order_release);
        tell();
        tracer.run();
        probe.finish();
        tracer.detach();
        shared_->state.store(TraceShared::ended, std::memory_order_release);
    } catch (const std::exception& error) {
        fail(error.what());
    }
    // Where an exception came out of the loop, the tracer's destructor has undone everything already.
    undo_all_patches(shared_->patches, memory_.get(), true);
    tell();
    _exit(0);
}

/// Sleeps until the tracing process is dying, and hurries then.
void TraceProcess::watch() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    // Ahead of the tracing process, and on its processor (Tracer::keep_beside()): from the moment that
    // process begins to die the thread that it served can't run until the repair is done.
    if (make_prompt()) shared_->watcher_tid.store(gettid(), std::memory_order_relaxed);
    pthread_mutex_lock(&shared_->alive);
    if (shared_->state.load(std::memory_order_acquire) != TraceShared::ended) {
        repair();
        died_.store(true, std::memory_order_release);
    }
    const std::uint64_t one = 1;
    if (::write(notify_.get(), &one, sizeof one) < 0) return;
}

void TraceProcess::repair() {
    rescuer_->ask(pid_, shared_->patches.stopped_tid.load(std::memory_order_relaxed));
    std::size_t repaired = undo_all_patches(shared_->patches, memory_.get(), false);
    rescuer_->wait_ready();
    rescuer_->finish();
    // Children that were made while it died carry copies of what was changed.
    for (const int child : process::list_processes()) {
        const auto stat = process::read_stat(child);
        if (!stat || stat->parent_pid != pid_) continue;
        const base::UniqueFd memory(::open(fmt::format("/proc/{}/mem", child).c_str(), O_RDWR | O_CLOEXEC));
        if (memory.is_open()) undo_all_patches(shared_->patches, memory.get(), false);
    }
    ::waitpid(tracer_, nullptr, 0);
    repaired += undo_all_patches(shared_->patches, memory_.get(), true);
    repaired_.store(repaired, std::memory_order_release);
}

void TraceProcess::stop() {
    if (stopped_) return;
    stopped_ = true;
    shared_->finish_asked.store(1, std::memory_order_release);
    shared_->exit_drained.store(1, std::memory_order_release);
    constexpr std::uint64_t kPatienceNs = 10'000'000'000;
    const std::uint64_t start = base::monotonic_ns();
    pollfd gone{alive_.get(), 0, 0};
    while (!died()) {
        ::kill(tracer_, SIGUSR1);
        if (::poll(&gone, 1, 20) > 0) break;
        if (base::monotonic_ns() - start > kPatienceNs) {  // it hangs: the watcher repairs what it leaves
            ::kill(tracer_, SIGKILL);
            break;
        }
    }
    if (watcher_.joinable()) watcher_.join();
    ::waitpid(tracer_, nullptr, 0);
    end_keeper();
}

}  // namespace memattach::probe
