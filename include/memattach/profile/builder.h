#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memattach/profile/profile.h"
#include "memattach/profile/stacks.h"
#include "memattach/profile/time_shares.h"
#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::profile {

struct BuildOptions {
    bool cpu = true;
    bool memory = false;
    bool gil = true;           ///< false: the target runs without one, and nobody can hold it
    bool by_thread = false;    ///< --threads: stacks keep their tid
    bool profile_all = false;  ///< charge the innermost frame, whoever's it is
    /// --profile-only: the user's code is what has one of these in its path or qualified name.
    std::vector<std::string> only;
    /// --profile-exclude: what has one of these is not charged; its caller is. Where nothing is left of a
    /// stack it goes to the row kOtherCode, so that the rows still add up to the totals.
    std::vector<std::string> exclude;
    std::uint64_t start_ns = 0;  ///< base::monotonic_ns() of the session's start; 0: the first event
    /// The text of a source line of the target (line ≥ 1, without its newline), or empty where it can't be
    /// read. Called once a row by finish(); may be empty itself.
    std::function<std::string(const std::string& path, std::uint32_t line)> source_line;
    std::optional<double> memory_limit_bytes;  ///< cgroup's or the machine's, for time to limit
};

/// Collects events and computes every estimate at the end. Its memory is bounded by the number of distinct
/// stacks and of live sampled blocks, not by the length of the session.
class Builder {
  public:
    Builder(const trace::FunctionTable& functions, const BuildOptions& options);
    ~Builder();
    Builder(const Builder&) = delete;
    Builder& operator=(const Builder&) = delete;

    /// Interns a stack; a caller that sees the same stack again may keep the id (as the sampler does for
    /// unchanged stacks).
    using StackId = profile::StackId;
    StackId intern(const trace::Stack& stack);

    void add(const trace::CpuSample& sample, StackId stack);
    void add(const trace::Alloc& alloc, StackId stack);
    void add(const trace::Free& free);
    void add(const trace::Window& window);
    void add(const trace::Unseen& unseen);
    void add(const trace::LiveBlocks& blocks);
    /// `live_bytes` is filled in by the builder where the point has none.
    void add(const TimelinePoint& point);
    /// A sample of a thread on a CPU, whether it is added as well or not: windows are spread by them.
    void add_place(const trace::CpuSample& sample, StackId stack);
    /// As TimeShares::spread(), for one process.
    void spread(int pid, trace::AllocKind kind, std::span<TimeShares::Place> windows);
    void name_thread(int pid, int tid, const std::string& name);

    /// Live figures so far (for a live table) or the final profile; may be called repeatedly. Reads source
    /// lines through BuildOptions::source_line. `known_totals` brings what the events can't tell: the rss_*
    /// and before_attach figures and cpu_s.
    [[nodiscard]] Profile finish(const Target& target, const Session& session,
                                 const Totals& known_totals) const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace memattach::profile
