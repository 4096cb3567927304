#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "memattach/probe/cpu_sampler.h"
#include "memattach/process/memory.h"
#include "memattach/profile/profile.h"
#include "memattach/python/layout.h"
#include "memattach/session/loop.h"
#include "memattach/session/memory_lens.h"
#include "memattach/session/options.h"
#include "memattach/session/recorder.h"
#include "memattach/session/target.h"

namespace memattach::session {

/// The Python processes that a session watches: the target, and with --subprocesses every process below it
/// that is or becomes Python.
///
///     fork ──► candidate ──Python found──► watched ──exec──► candidate …
///                  └──── nothing found for kCandidateFor, or it ended ──► forgotten
class Processes {
  public:
    Processes(const Options& options, Loop& loop, Recorder& recorder);
    ~Processes();

    /// Watches the target itself, whose runtime has been found.
    void watch_target(int pid, const python::Runtime& runtime);

    void child_started(int pid);
    void exec_called(int pid);
    /// Several times a second: children that nobody told about, candidates, ends.
    void scan(std::uint64_t now_ns);

    enum class State : std::uint8_t { alive, ended, execed_away };
    [[nodiscard]] State target_state() const { return target_state_; }
    [[nodiscard]] Ending target_ending() const;

    /// Ends every probe and says in `session` what they were and what they lost.
    void finish(profile::Session& session);
    /// CPU time that all of them burned since they were first watched.
    [[nodiscard]] double cpu_s() const;
    [[nodiscard]] std::optional<double> rss_bytes() const;
    /// Allocations sampled so far.
    [[nodiscard]] std::uint64_t alloc_samples() const;
    /// After finish(): frees of blocks that were not sampled, or allocated before attach.
    [[nodiscard]] std::optional<std::uint64_t> unknown_frees() const { return memory_.unknown_frees(); }
    [[nodiscard]] std::size_t watched_count() const { return watched_ever_; }

  private:
    struct Watched;
    struct Candidate {
        std::uint64_t since_ns = 0;
        std::uint64_t next_try_ns = 0;
        bool is_target = false;
    };
    void watch(int pid, const python::Runtime& runtime, bool is_target);
    void watch_memory(Watched& watched);
    void drop(int pid);
    void end_probe(Watched& watched);
    void try_candidates(std::uint64_t now_ns);
    void find_children(std::uint64_t now_ns);
    void account(Watched& watched);

    const Options& options_;
    Loop& loop_;
    Recorder& recorder_;
    std::map<int, std::unique_ptr<Watched>> watched_;
    std::map<int, Candidate> candidates_;
    std::set<int> known_;  ///< every pid below the target that has been looked at
    int target_pid_ = 0;
    std::unique_ptr<ProcessEnd> target_end_;
    State target_state_ = State::alive;
    std::size_t watched_ever_ = 0;
    double ended_cpu_s_ = 0;
    trace::LossCounts losses_;
    std::uint64_t stopped_ns_ = 0, longest_stop_ns_ = 0;
    std::vector<std::string> notes_;
    std::uint64_t children_unseen_ = 0;  ///< whose memory could not be watched
    std::string first_unseen_;           ///< why, of the first
    std::string engine_;
    MemoryAccount memory_;
    std::uint64_t ended_alloc_samples_ = 0;
};

}  // namespace memattach::session
