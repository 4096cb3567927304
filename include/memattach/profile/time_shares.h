/// Where a process's time goes, as the CPU samples tell, for windows to stand for it.
///
/// A window is a tenth of a millisecond at a random moment, and there are some twenty a second: a part of the
/// program that takes a tenth of its time has one window in one second and four in the next, and what it
/// allocates is said to be as many times as much. How much time it takes is known better, from several times
/// as many CPU samples, which cost the process nothing. So windows are told apart by where in the program
/// they began, and those of each part stand for the share of the time that it had (post-stratification). What
/// is a part is decided by the stacks: the tree of all of them is split, from the outermost frame on, as long
/// as there are some windows and some samples on either side.
///
///     main:10 ─┬─ load:3    40 % of the samples, 2 of 10 windows: each stands for 20 % of the time
///              └─ render:7  60 %                 8                                 7.5 %
///
/// Shares are kept over the last windows, and the samples of the same time, not within those windows that are
/// spread at once: what a part had too little of it gets when it is met again.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "memattach/profile/stacks.h"
#include "memattach/trace/events.h"

namespace memattach::profile {

class TimeShares {
  public:
    /// A moment at which a thread ran outside of the kernel.
    void add(std::uint64_t time_ns, StackId stack);

    struct Place {
        StackId stack{};
        std::uint64_t time_ns = 0;
        double span_ns = 0;  ///< that the window stands for
    };
    /// Changes what windows of one kind that followed each other stand for; their sum stays the same.
    void spread(const StackTable& stacks, trace::AllocKind kind, std::span<Place> windows);

  private:
    [[nodiscard]] std::uint64_t first_window_ns() const;

    /// So many windows of a kind, and samples, it remembers: of more samples in the windows' time every
    /// second one, every fourth, and so on.
    static constexpr std::size_t kWindows = 256, kSamples = 2048;

    struct Sample {
        StackId stack{};
        std::uint64_t time_ns = 0;
    };
    std::deque<Sample> samples_;
    std::size_t every_ = 1, passed_ = 0;
    std::array<std::deque<Place>, trace::kAllocKinds> windows_;
};

}  // namespace memattach::profile
