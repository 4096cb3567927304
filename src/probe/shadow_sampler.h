#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <unordered_map>
#include <vector>

#include "memattach/probe/planned_site.h"
#include "memattach/probe/shadow.h"
#include "memattach/probe/thread_states.h"
#include "memattach/process/memory.h"
#include "memattach/python/reader.h"
#include "shadow_pages.h"
#include "shadow_space.h"

namespace memattach::probe {

/// The shadow's memory, and behind it the target's, for what the shadow hasn't touched: as it was when the
/// thread was held where that was read then, else as it is now.
class ShadowMemory final : public process::Memory {
  public:
    explicit ShadowMemory(const process::Memory& target) : target_(target) {}
    void set_shadow(pid_t pid) { shadow_.emplace(pid); }
    /// The thread is held: from here to end_hold() reads are the target's, and their pages are kept until the
    /// next hold.
    void begin_hold() {
        held_.clear();
        is_held_ = true;
    }
    void end_hold() { is_held_ = false; }
    /// Only what the shadow has touched.
    [[nodiscard]] bool read_touched(base::Address from, std::span<std::byte> out) const {
        return shadow_ && shadow_->read_exactly(from, out);
    }
    [[nodiscard]] std::size_t read_up_to(base::Address from, std::span<std::byte> out) const override;

  private:
    using Page = std::array<std::byte, ShadowShared::kPageBytes>;
    [[nodiscard]] bool copy_held(std::uint64_t from, std::span<std::byte> out) const;

    const process::Memory& target_;
    std::optional<process::LiveMemory> shadow_;
    bool is_held_ = false;
    mutable std::unordered_map<std::uint64_t, Page> held_;
};

/// Runs a state that has been run before, stopping at some of its allocations.
class ShadowSampler {
  public:
    ShadowSampler(pid_t target, const process::Memory& memory, const python::Runtime& runtime,
                  const SiteMap& map, std::span<const PlannedSite> sites, ShadowCounters& counters);

    /// The thread is held: reads its Python stack. Frames further out are hardly touched in a window, and the
    /// target will have gone on to other lines by the time that a sample asks for them.
    void see_stack(std::uint64_t pthread);
    /// What that was, innermost frame first; empty: it isn't known.
    [[nodiscard]] const std::vector<python::RawFrame>& seen_stack() const { return seen_.frames; }
    /// To be called now and then, while no thread is held.
    void keep_up();

    struct Event {
        TraceEvent event;
        std::vector<python::RawFrame> frames;
    };
    /// `hits` and `allocations`: of the window's group, as counted before; only the first `hits` are looked
    /// at.
    void run(ShadowSpace& space, ShadowPages& pages, const ShadowWindow& window, pid_t tid, double own_ns,
             double hits, double allocations);
    /// Allocations, frees, and at last what the blocks hold that outlived the window.
    [[nodiscard]] const std::vector<Event>& events() const { return events_; }
    [[nodiscard]] std::size_t samples() const { return samples_; }
    /// Bytes that were asked for, estimated.
    [[nodiscard]] double bytes() const { return bytes_; }

    /// Hits of a group's sites so far; of allocating ones alone.
    [[nodiscard]] double hits(std::size_t group, bool allocating_only = false) const;

  private:
    struct Call {
        Event sample;
        double probability = 1;
        const PlannedSite* site = nullptr;
        std::uint64_t stack_pointer = 0, return_address = 0, out = 0;
        std::byte displaced{};
        std::uint64_t countdown = 0;  ///< to go on with
    };

    void draw(std::size_t group);
    void draw_no_more();
    void on_site(ShadowSpace& space, std::size_t index, const user_regs_struct& regs);
    void begin(ShadowSpace& space, const PlannedSite& planned, double probability,
               const user_regs_struct& regs);
    bool on_return(ShadowSpace& space, user_regs_struct regs);
    void end_block(std::uint64_t block);
    void tell_contents();
    void read_stack(std::uint64_t pthread, Event& sample);
    [[nodiscard]] std::uint64_t present_ns() const;

    const SiteMap& map_;
    std::span<const PlannedSite> sites_;
    ShadowCounters& counters_;
    ShadowMemory memory_;
    python::StackReader reader_;
    ThreadStates thread_states_;
    python::RawStack raw_;
    Event seen_;
    std::mt19937_64 random_{1};

    ShadowWindow window_;
    std::size_t group_ = 0;
    pid_t tid_ = 0;
    double every_ = 1;  ///< hits of allocating sites per stop
    struct Savings {
        double samples = 0;
        std::uint64_t at_ns = 0;  ///< as of then; 0: of all time
    };
    std::array<Savings, 2> saved_;  ///< by group
    double start_ns_ = 0;           ///< of the window, on the monotonic clock
    double per_hit_ns_ = 0;
    std::optional<Call> call_;
    std::unordered_map<std::uint64_t, std::uint64_t> live_;  ///< sampled blocks: their places in the table
    std::vector<Event> events_;
    std::size_t samples_ = 0;
    bool is_over_ = false;  ///< the window: only ends of what was sampled are looked for
    double bytes_ = 0;
};

}  // namespace memattach::probe
