/// The mathematics of the intervals, apart from where the numbers come from.
///
/// Two things are random about a sampled sum of bytes. Which allocations were kept: each independently with
/// probability p = 1 − exp(−size/R), so that Σ W²(1−p) over the kept ones estimates its variance, W being
/// what one stands for. And, where a kind of site is armed in windows only, which stretches of time were
/// looked at: allocations of one window come together, so that part is estimated from how much the sums of 32
/// groups of windows differ (random groups; Wolter, Introduction to Variance Estimation, ch. 2), less the
/// share of time that was looked at anyway (finite population correction). How long the windows were is
/// itself known only so well (trace::Window::own_spread); that moves all sums of a kind by one factor.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "memattach/trace/events.h"

namespace memattach::profile {

inline constexpr double kZ95 = 1.959963984540054;

/// Half width of the 95 % interval of a share of which `hits` out of `samples` were seen: the farther of the
/// two ends of Wilson's score interval. 0 ≤ hits ≤ samples; 0…1, and 1 where there are no samples.
[[nodiscard]] double share_ci95(std::uint64_t hits, std::uint64_t samples);

/// The 97.5 % quantile of Student's t with `freedom` degrees (≥ 1).
[[nodiscard]] double student_t95(double freedom);

/// P(Z ≤ z) of the standard normal distribution.
[[nodiscard]] double normal_cdf(double z);

inline constexpr std::size_t kWindowGroups = 32;
using trace::kAllocKinds;

/// Windows that follow each other are of different groups, so that each group sees the whole session.
[[nodiscard]] constexpr std::size_t group_of(std::uint64_t window) {
    return static_cast<std::size_t>(window % kWindowGroups);
}

/// How much of the target's own time the windows of each group of one kind stand for.
struct WindowTimes {
    std::array<double, kWindowGroups> span_ns{};
    double own_ns = 0;
    double all_span_ns = 0;
    double spread_ns = 0;  ///< Σ span × own_spread
    double windows = 0;    ///< how many there were; stretches that were armed all the time aren't

    void add(const trace::Window& window);
    /// Share of time that was looked at, of the time in which the kind went by windows; 1 where it never did.
    [[nodiscard]] double fraction() const;
    /// How far off all windows' own times may be together, relative.
    [[nodiscard]] double spread() const { return all_span_ns > 0 ? spread_ns / all_span_ns : 0; }
};
using AllWindowTimes = std::array<WindowTimes, kAllocKinds>;

/// A sum over sampled blocks that knows its variance.
class SampleSum {
  public:
    SampleSum() = default;
    SampleSum(const SampleSum& other) { *this += other; }
    SampleSum& operator=(const SampleSum& other);
    SampleSum(SampleSum&&) noexcept = default;
    SampleSum& operator=(SampleSum&&) noexcept = default;
    ~SampleSum() = default;

    /// `value` is what the sample stands for, `kept` the probability p. window 0: its kind was armed all the
    /// time then.
    void add(double value, double kept, trace::AllocKind kind, std::uint64_t window);
    /// A part that is known with this variance, by itself.
    void add_known(double value, double variance) {
        value_ += value;
        known_variance_ += variance;
    }
    /// What is left without `part`, the sum of some of these samples: together they vary less than each
    /// alone.
    [[nodiscard]] SampleSum without(const SampleSum& part) const;
    SampleSum& operator+=(const SampleSum& other);
    /// Adds `factor` × other, of which the samples are not this sum's own: only what windows see of them.
    void add_part(const SampleSum& other, double factor);
    void scale(double factor);
    /// Makes this sum `factor` times as much, factor × whole being known to be true with `relative_variance`.
    /// Of the samples only how they differ from the others of the whole is left to chance; `share`: the
    /// sum's part of the whole.
    void calibrate(const SampleSum& whole, double share, double factor, double relative_variance);
    /// Over how many groups of windows the sum is spread, were they alike.
    [[nodiscard]] double effective_groups() const;
    /// How likely it is that the sum came out as large as this by chance, had it been as likely to be
    /// negative in each group of windows as positive: the share of random signs that make it so. What groups
    /// weigh makes no difference where all of them agree. 1 where a part has been calibrated: its groups have
    /// no sign of their own.
    [[nodiscard]] double chance_of_sign() const;
    /// How much there may be, with 95 % confidence, of something of which none was among these samples: three
    /// times what one of them stands for, the larger ones counting for more.
    [[nodiscard]] double most_unseen() const;
    /// This being the sum of everything: how much a row of it may have, with 95 % confidence, that was met in
    /// no window. Of n windows it was in less than 3 / n then, and has that share of what windows saw, more
    /// or less.
    [[nodiscard]] double most_missed(const AllWindowTimes& times) const;

    [[nodiscard]] double value() const { return value_; }
    [[nodiscard]] std::uint64_t samples() const { return samples_; }

    struct Uncertainty {
        double variance = 0;
        double freedom = 1e9;  ///< degrees of freedom of the variance's own estimate
        std::uint64_t samples = 0;
        [[nodiscard]] double half_width95() const;
    };
    [[nodiscard]] Uncertainty uncertainty(const AllWindowTimes& times) const;
    [[nodiscard]] bool has_windows() const {
        return std::any_of(windowed_.begin(), windowed_.end(), [](const auto& w) { return w != nullptr; });
    }

  private:
    struct Windowed {
        double kept_variance = 0;
        std::array<double, kWindowGroups> by_group{};
    };

    double value_ = 0;
    double squares_ = 0;        ///< of what samples stand for that might as well not have been seen
    double kept_variance_ = 0;  ///< of samples outside of windows
    double known_variance_ = 0;
    bool calibrated_ = false;
    /// Those samples' own sizes, by kind: how large a block of this row is that no window happened to meet.
    struct Seen {
        double bytes = 0, count = 0;
    };
    std::array<Seen, kAllocKinds> unwindowed_;
    std::uint64_t samples_ = 0;
    std::array<std::unique_ptr<Windowed>, kAllocKinds> windowed_;
};

}  // namespace memattach::profile
