#include "memattach/session/processes.h"

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/probe/cpu_task.h"
#include "memattach/python/finder.h"

namespace memattach::session {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
/// How long a new process may take to become Python.
constexpr std::uint64_t kCandidateForNs = 5'000 * kMs;
/// The target itself, after an exec: what is profiled must be clear soon.
constexpr std::uint64_t kTargetCandidateForNs = 1'000 * kMs;

}  // namespace

struct Processes::Watched {
    Watched(int pid_, const python::Runtime& runtime_, bool is_target_)
        : pid(pid_), is_target(is_target_), memory(pid_), runtime(runtime_), end(pid_) {
        start_cpu_ns = last_cpu_ns = process_cpu_ns(pid).value_or(0);
    }

    int pid;
    bool is_target;
    process::LiveMemory memory;
    python::Runtime runtime;
    ProcessEnd end;
    std::uint64_t start_cpu_ns = 0, last_cpu_ns = 0;
    std::unique_ptr<probe::CpuSampler> sampler;
    std::unique_ptr<MemoryLens> allocs;
};

Processes::Processes(const Options& options, Loop& loop, Recorder& recorder)
    : options_(options), loop_(loop), recorder_(recorder) {}

Processes::~Processes() {
    for (auto& [pid, watched] : watched_)
        if (watched->sampler) loop_.remove(*watched->sampler);
}

void Processes::watch_target(int pid, const python::Runtime& runtime) {
    target_pid_ = pid;
    target_end_ = std::make_unique<ProcessEnd>(pid);
    if (target_end_->fd() >= 0) {
        loop_.watch(target_end_->fd(), [this] {
            target_state_ = candidates_.contains(target_pid_) ? State::execed_away : State::ended;
            loop_.stop();
        });
    }
    known_.insert(pid);
    watch(pid, runtime, true);
    if (options_.subprocesses) find_children(base::monotonic_ns());
}

void Processes::watch(int pid, const python::Runtime& runtime, bool is_target) {
    auto watched = std::make_unique<Watched>(pid, runtime, is_target);
    if (options_.memory) watch_memory(*watched);  // first: it forks
    if (options_.cpu) {
        const probe::CpuOptions cpu{options_.rate_hz, options_.idle, options_.blocking, options_.native};
        watched->sampler = std::make_unique<probe::CpuSampler>(pid, watched->runtime, watched->memory,
                                                               recorder_.functions(), cpu, recorder_, loop_);
        engine_ = watched->sampler->engine();
        loop_.add(*watched->sampler);
    }
    ++watched_ever_;
    watched_.emplace(pid, std::move(watched));
}

/// Where it is one lens of two, the other goes on without it, and the profile says so.
void Processes::watch_memory(Watched& watched) {
    MemoryLens::Events events;
    events.child_started = [this](int child) { child_started(child); };
    events.exec_called = [this](int pid) {
        if (!options_.cpu) exec_called(pid);  // else the sampler tells
    };
    try {
        watched.allocs = std::make_unique<MemoryLens>(watched.pid, watched.runtime, watched.memory, options_,
                                                      recorder_, loop_, std::move(events));
    } catch (const base::Error& error) {
        if (watched.is_target && !options_.cpu) throw;
        if (watched.is_target) {
            notes_.push_back(
                fmt::format("allocations of process {} are not seen: {}", watched.pid, error.what()));
        } else if (++children_unseen_ == 1) {
            // Children come by the hundred, and end before they can be looked at.
            first_unseen_ = error.what();
        }
    }
}

void Processes::account(Watched& watched) {
    if (const auto cpu = process_cpu_ns(watched.pid))
        watched.last_cpu_ns = std::max(watched.last_cpu_ns, *cpu);
}

void Processes::end_probe(Watched& watched) {
    if (watched.allocs) {
        watched.allocs->finish();
        memory_.add(watched.allocs->stats());
        ended_alloc_samples_ += watched.allocs->samples();
        watched.allocs.reset();
    }
    if (!watched.sampler) return;
    loop_.remove(*watched.sampler);
    watched.sampler->finish();
    for (std::size_t i = 0; i < losses_.counts.size(); ++i)
        losses_.counts[i] += watched.sampler->losses().counts[i];
    stopped_ns_ += watched.sampler->stopped_ns();
    longest_stop_ns_ = std::max(longest_stop_ns_, watched.sampler->longest_stop_ns());
    for (std::string& note : watched.sampler->notes())
        if (std::find(notes_.begin(), notes_.end(), note) == notes_.end()) notes_.push_back(std::move(note));
    watched.sampler.reset();
}

void Processes::drop(int pid) {
    const auto found = watched_.find(pid);
    if (found == watched_.end()) return;
    account(*found->second);
    end_probe(*found->second);
    ended_cpu_s_ += static_cast<double>(found->second->last_cpu_ns - found->second->start_cpu_ns) / 1e9;
    watched_.erase(found);
}

// These two are called from within a sampler: what they lead to must wait until it has returned.

void Processes::child_started(int pid) {
    if (!options_.subprocesses || !known_.insert(pid).second) return;
    const std::uint64_t now = base::monotonic_ns();
    candidates_[pid] = {now, now, false};
    loop_.post([this] { try_candidates(base::monotonic_ns()); });
}

void Processes::exec_called(int pid) {
    loop_.post([this, pid] {
        drop(pid);
        const std::uint64_t now = base::monotonic_ns();
        candidates_[pid] = {now, now + 5 * kMs, pid == target_pid_};
    });
}

void Processes::find_children(std::uint64_t now_ns) {
    std::vector<int> parents = {target_pid_};
    for (std::size_t i = 0; i < parents.size() && i < 4096; ++i) {
        for (const int child : probe::list_children(parents[i])) {
            parents.push_back(child);
            if (known_.insert(child).second) candidates_[child] = {now_ns, now_ns, false};
        }
    }
}

void Processes::try_candidates(std::uint64_t now_ns) {
    std::vector<int> settled;
    for (auto& [pid, candidate] : candidates_) {
        if (now_ns < candidate.next_try_ns) continue;
        const std::uint64_t age = now_ns - candidate.since_ns;
        candidate.next_try_ns = now_ns + std::max<std::uint64_t>(10 * kMs, age / 4);
        try {
            const process::LiveMemory memory(pid);
            python::FindOptions find;
            find.startup_wait = std::chrono::milliseconds(0);
            const python::Runtime runtime = python::find_runtime(pid, memory, find);
            watch(pid, runtime, candidate.is_target);
            settled.push_back(pid);
        } catch (const base::Error& error) {
            const bool gone = ::kill(pid, 0) != 0 && errno == ESRCH;
            if (!gone && age < (candidate.is_target ? kTargetCandidateForNs : kCandidateForNs)) continue;
            settled.push_back(pid);
            if (candidate.is_target && !gone) {
                target_state_ = State::execed_away;
                notes_.push_back(fmt::format("the target executed another program: {}", error.what()));
                loop_.stop();
            }
        }
    }
    for (const int pid : settled) candidates_.erase(pid);
}

void Processes::scan(std::uint64_t now_ns) {
    std::vector<int> ended, execed;
    for (auto& [pid, watched] : watched_) {
        account(*watched);
        if (watched->end.has_ended()) {
            ended.push_back(pid);
        } else if (watched->end.has_execed()) {
            execed.push_back(pid);
        }
    }
    for (const int pid : execed) exec_called(pid);
    for (const int pid : ended) {
        if (pid == target_pid_) {
            target_state_ = State::ended;
            loop_.stop();
        } else {
            drop(pid);
        }
    }
    if (options_.subprocesses) find_children(now_ns);
    try_candidates(now_ns);
}

Ending Processes::target_ending() const {
    return target_state_ == State::ended && target_end_ ? target_end_->how() : Ending::running;
}

void Processes::finish(profile::Session& session) {
    // All of them first: to leave one may take a while, in which the others burn on.
    for (auto& [pid, watched] : watched_) account(*watched);
    for (auto& [pid, watched] : watched_) end_probe(*watched);
    session.engine_cpu = engine_;
    session.loss = losses_;
    memory_.fill(session, options_.malloc_threshold_mb * 1024 * 1024);
    session.stopped_s += static_cast<double>(stopped_ns_) / 1e9;
    session.longest_stop_us = std::max(session.longest_stop_us, static_cast<double>(longest_stop_ns_) / 1e3);
    if (children_unseen_ > 0)
        notes_.push_back(fmt::format("allocations of {} child process{} are not seen: {}{}", children_unseen_,
                                     children_unseen_ == 1 ? "" : "es",
                                     children_unseen_ == 1 ? "" : "for one, ", first_unseen_));
    session.notes.insert(session.notes.end(), notes_.begin(), notes_.end());
}

std::uint64_t Processes::alloc_samples() const {
    std::uint64_t total = ended_alloc_samples_;
    for (const auto& [pid, watched] : watched_)
        if (watched->allocs) total += watched->allocs->samples();
    return total;
}

double Processes::cpu_s() const {
    double total = ended_cpu_s_;
    for (const auto& [pid, watched] : watched_)
        total += static_cast<double>(watched->last_cpu_ns - watched->start_cpu_ns) / 1e9;
    return total;
}

std::optional<double> Processes::rss_bytes() const {
    std::optional<double> total;
    for (const auto& [pid, watched] : watched_)
        if (const auto rss = session::rss_bytes(pid)) total = total.value_or(0) + *rss;
    return total;
}

}  // namespace memattach::session
