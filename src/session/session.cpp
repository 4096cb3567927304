#include "memattach/session/session.h"

#include <chrono>
#include <memory>
#include <thread>

#include "memattach/base/clock.h"
#include "memattach/probe/cpu_task.h"
#include "memattach/probe/startup_hold.h"
#include "memattach/process/memory.h"
#include "memattach/python/finder.h"
#include "memattach/session/command.h"
#include "memattach/session/descriptor_limit.h"
#include "memattach/session/loop.h"
#include "memattach/session/priority.h"
#include "memattach/session/processes.h"
#include "memattach/session/recorder.h"
#include "memattach/session/signals.h"
#include "memattach/session/source_lines.h"
#include "memattach/session/target.h"

namespace memattach::session {
namespace {

constexpr std::uint64_t kHousekeepingNs = 100'000'000;
/// How long a started command may take to become Python: it may be a wrapper that sets things up first.
constexpr std::uint64_t kCommandStartNs = 30'000'000'000;
/// How long an interpreter that exists may take to begin with the program. One that is embedded never does.
constexpr std::uint64_t kHoldPatienceNs = 5'000'000'000;

void check(const Options& options) {
    if (!options.pid && options.command.empty())
        base::throw_error("neither a process id nor a command was given");
    if (!(options.rate_hz >= 0.1 && options.rate_hz <= 1e6))
        base::throw_error("a rate of {} Hz is outside of 0.1 … 1000000", options.rate_hz);
    if (options.native && options.cpu && options.rate_hz > probe::kEventRateLimitHz)
        base::throw_error("--native goes with rates up to {} Hz, not {}", probe::kEventRateLimitHz,
                          options.rate_hz);
}

/// A started command, or the first process below it, that is Python: `uv run`, `env` and shell scripts come
/// first.
///
/// Where it is held at its start (`hold`), the command itself is not taken before it is there, or doesn't get
/// there.
std::pair<int, python::Runtime> find_started_python(Command& command, Signals& signals,
                                                    probe::StartupHold* hold) {
    const std::uint64_t start = base::monotonic_ns();
    std::optional<std::uint64_t> found_ns;
    std::string last_error = "it has not started a Python process";
    while (true) {
        const bool starting = hold != nullptr && hold->step() == probe::StartupHold::State::waiting;
        std::vector<int> pids = {command.pid()};
        for (std::size_t i = 0; i < pids.size() && i < 256; ++i) {
            try {
                const process::LiveMemory memory(pids[i]);
                python::FindOptions find;
                find.startup_wait = std::chrono::milliseconds(0);
                python::Runtime runtime = python::find_runtime(pids[i], memory, find);
                if (!found_ns) found_ns = base::monotonic_ns();
                if (starting && i == 0 && base::monotonic_ns() - *found_ns < kHoldPatienceNs) break;
                if (starting) hold->release();
                return {pids[i], std::move(runtime)};
            } catch (const base::Error& error) {
                if (i == 0) last_error = error.what();
            }
            for (const int child : probe::list_children(pids[i])) pids.push_back(child);
        }
        if (const auto status = starting ? std::nullopt : command.poll_status())
            base::throw_error("the command ended before there was a Python process to profile: {}",
                              last_error);
        if (signals.next()) base::throw_error("interrupted while waiting for the command to start Python");
        if (base::monotonic_ns() - start > kCommandStartNs) base::throw_error("{}", last_error);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

Promptness promptness(const Options& options) {
    if (!options.cpu || options.rate_hz > probe::kEventRateLimitHz) return Promptness::ordinary;
    return options.memory ? Promptness::preferred : Promptness::real_time;
}

/// One run, from attach to profile.
class Run {
  public:
    Run(const Options& options, const ProgressFunction& progress)
        : options_(options),
          progress_(progress),
          loop_(options.cpu && options.rate_hz > probe::kEventRateLimitHz),
          priority_(promptness(options)) {}

    Outcome operator()();

  private:
    void attach();
    void on_signal();
    void housekeeping();
    void tell_progress(std::uint64_t now_ns) const;
    void add_timeline_point(std::uint64_t now_ns);
    void conclude();

    const Options& options_;
    const ProgressFunction& progress_;
    Signals signals_;
    DescriptorLimit descriptors_;
    Loop loop_;
    SamplingPriority priority_;
    std::unique_ptr<Command> command_;
    std::unique_ptr<probe::StartupHold> hold_;
    int pid_ = 0;
    profile::Target target_;
    std::unique_ptr<SourceLines> source_;
    std::unique_ptr<Recorder> recorder_;
    std::unique_ptr<Processes> processes_;
    profile::Session session_;
    profile::Totals totals_;
    Outcome outcome_;
    std::uint64_t start_ns_ = 0;
    std::uint64_t last_point_ns_ = 0;
    double last_cpu_s_ = 0;
};

void Run::attach() {
    python::Runtime runtime;
    if (options_.pid) {
        pid_ = *options_.pid;
        const process::LiveMemory memory(pid_);
        runtime = python::find_runtime(pid_, memory);
        if (options_.gil_only && !has_gil(memory, runtime))
            base::throw_error(
                "process {} runs Python {} without a GIL, which --gil would wait for: leave it out", pid_,
                version_text(runtime));
    } else {
        const auto before_exec = [this](pid_t pid) {
            if (options_.memory) hold_ = std::make_unique<probe::StartupHold>(pid);
        };
        command_ = std::make_unique<Command>(options_.command, signals_.old_mask(), before_exec);
        std::tie(pid_, runtime) = find_started_python(*command_, signals_, hold_.get());
    }
    target_ = describe_target(pid_, runtime);
    source_ = std::make_unique<SourceLines>(pid_);

    profile::BuildOptions build;
    build.cpu = options_.cpu;
    build.memory = options_.memory;
    build.by_thread = options_.threads;
    build.gil = has_gil(process::LiveMemory(pid_), runtime);
    build.profile_all = options_.profile_all;
    build.only = options_.profile_only;
    build.exclude = options_.profile_exclude;
    build.memory_limit_bytes = memory_limit_bytes(pid_);
    build.start_ns = start_ns_ = base::monotonic_ns();
    build.source_line = [this](const std::string& path, std::uint32_t line) {
        return source_->line(path, line);
    };
    recorder_ =
        std::make_unique<Recorder>(build, options_.gil_only,
                                   Recorder::Events{[this](int pid) { processes_->child_started(pid); },
                                                    [this](int pid) { processes_->exec_called(pid); }});
    processes_ = std::make_unique<Processes>(options_, loop_, *recorder_);
    processes_->watch_target(pid_, runtime);
    hold_.reset();  // from here on it runs
    session_.started = now_text();
    session_.rate_hz = options_.rate_hz;
    totals_.rss_start_bytes = processes_->rss_bytes();
}

void Run::on_signal() {
    while (const auto signal = signals_.next()) {
        // A command that we started decides itself what a signal means; the second one ends us as well.
        if (command_ && outcome_.signal == 0 && !command_->poll_status()) {
            if (!signal->from_terminal) ::kill(command_->pid(), signal->number);
        } else {
            loop_.stop();
        }
        outcome_.signal = signal->number;
    }
}

void Run::add_timeline_point(std::uint64_t now_ns) {
    profile::TimelinePoint point;
    point.t_s = static_cast<double>(now_ns - start_ns_) / 1e9;
    point.rss_bytes = processes_->rss_bytes();
    const double cpu_s = processes_->cpu_s();
    const double passed_s = static_cast<double>(now_ns - last_point_ns_) / 1e9;
    // CPU time moves with the kernel's ticks: the moment that is left at the end has no share of its own.
    constexpr double kLeastS = 0.03;
    if (passed_s >= kLeastS) point.cpu_pct = 100 * (cpu_s - last_cpu_s_) / passed_s;
    last_cpu_s_ = cpu_s;
    last_point_ns_ = now_ns;
    if (point.rss_bytes) {
        totals_.rss_end_bytes = point.rss_bytes;
        totals_.rss_peak_bytes = std::max(totals_.rss_peak_bytes.value_or(0), *point.rss_bytes);
    }
    recorder_->builder().add(point);
}

void Run::housekeeping() {
    const std::uint64_t now = base::monotonic_ns();
    processes_->scan(now);
    add_timeline_point(now);
    tell_progress(now);
}

void Run::tell_progress(std::uint64_t now_ns) const {
    if (!progress_) return;
    Progress progress;
    progress.elapsed_s = static_cast<double>(now_ns - start_ns_) / 1e9;
    progress.cpu_samples = recorder_->cpu_samples();
    progress.allocations = processes_->alloc_samples();
    progress_(progress);
}

void Run::conclude() {
    priority_.end();
    const std::uint64_t end_ns = base::monotonic_ns();
    session_.duration_s = static_cast<double>(end_ns - start_ns_) / 1e9;
    const Ending ending = processes_->target_ending();
    processes_->finish(session_);
    add_timeline_point(end_ns);
    totals_.cpu_s = processes_->cpu_s();
    totals_.unknown_frees = processes_->unknown_frees();
    if (options_.memory) totals_.before_attach_bytes = totals_.rss_start_bytes;
    if (processes_->target_state() == Processes::State::execed_away)
        outcome_.code = base::ExitCode::target_lost;
    if (processes_->target_state() == Processes::State::ended) {
        session_.target_exited = true;
        if (ending == Ending::killed) {
            outcome_.code = base::ExitCode::target_lost;
            session_.notes.push_back(
                fmt::format("the target was killed after {:.1f} s", session_.duration_s));
        } else if (ending == Ending::unknown) {
            session_.notes.push_back("the target ended; this kernel does not tell how");
        }
    }
    if (options_.subprocesses && processes_->watched_count() > 1)
        session_.notes.push_back(fmt::format("{} Python processes", processes_->watched_count()));
    outcome_.profile = recorder_->builder().finish(target_, session_, totals_);
    if (options_.gil_only && outcome_.profile.totals.cpu_samples == 0)
        outcome_.profile.session.notes.emplace_back("no sample held a GIL, and --gil counts no others");
    if (command_) {
        if (processes_->target_state() == Processes::State::ended) {
            outcome_.child_status = command_->wait();
        } else {
            outcome_.command_pid = command_->pid();
        }
    }
}

Outcome Run::operator()() {
    check(options_);
    attach();
    loop_.watch(signals_.fd(), [this] { on_signal(); });
    loop_.every(kHousekeepingNs, [this] { housekeeping(); });
    if (options_.duration) {
        const auto duration_ns =
            std::chrono::duration_cast<std::chrono::nanoseconds>(*options_.duration).count();
        loop_.every(static_cast<std::uint64_t>(duration_ns), [this] { loop_.stop(); });
    }
    last_point_ns_ = start_ns_;
    tell_progress(start_ns_);  // that it has begun
    loop_.run();
    conclude();
    return std::move(outcome_);
}

}  // namespace

Outcome run(const Options& options, const ProgressFunction& progress) {
    return Run(options, progress)();
}

}  // namespace memattach::session
