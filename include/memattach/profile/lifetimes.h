#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "memattach/trace/events.h"

namespace memattach::profile {

/// How long blocks live: ends and time at risk by age, in ages that double (250 µs … 4.7 h). Their ratio is
/// the hazard, and its running sum gives survival (Nelson–Aalen, piecewise constant); blocks that are still
/// young when the session ends are at risk for as long as they were there, no longer. Only time in which an
/// end would have been seen counts: all of it while a block's own window is open, later only the share in
/// which other windows are.
class LifeTable {
  public:
    static constexpr std::size_t kBins = 27;
    static constexpr double kFirstBinNs = 250'000;
    /// A number for each range of ages.
    using ByAge = std::array<double, kBins>;

    void add_end(double age_ns) { ends_[bin_of(age_ns)] += 1; }
    /// A block was there, and watched, from birth to this age.
    void add_watched(double age_ns) { add(watched_ns_, 0, age_ns, 1); }
    /// A block was there, with probability `alive`, and watched only while other windows than its own were
    /// open.
    void add_gap(double from_ns, double to_ns, double alive = 1) { add(gap_ns_, from_ns, to_ns, alive); }
    LifeTable& operator+=(const LifeTable& other);

    /// Ends per ns at each age. `armed`: share of gap time that was watched. Where an age says little by
    /// itself, its hazard is taken to be that of the age before, and `expected` at the youngest: only ends
    /// that should have been seen, and weren't, make blocks look longer-lived.
    [[nodiscard]] ByAge hazards(const ByAge& armed, double expected) const;

    [[nodiscard]] static std::size_t bin_of(double age_ns);
    [[nodiscard]] static double start_of(std::size_t bin);

  private:
    using Sums = std::array<float, kBins>;
    static void add(Sums& sums, double from_ns, double to_ns, double share);

    Sums ends_{};
    Sums watched_ns_{};
    Sums gap_ns_{};
};

/// Survival by age, from hazards.
class Survival {
  public:
    explicit Survival(const LifeTable::ByAge& hazards);
    /// P(a block lives longer than this).
    [[nodiscard]] double at(double age_ns) const;

  private:
    LifeTable::ByAge hazards_;
    LifeTable::ByAge at_start_{};  ///< of each bin
};

/// The share of time in which a kind is watched so long after a block's birth, other than by the window that
/// the block was born in. Windows keep their distance (one a span), so that shortly after a window there is
/// hardly another, and taking the overall share there would make brief lives look long.
class ArmedByAge {
  public:
    void add(const trace::Window& window);
    /// `overall` for ages that nothing is known of.
    [[nodiscard]] LifeTable::ByAge shares(double overall) const;

  private:
    struct Seen {
        double middle_ns, length_ns;
    };
    void add_possible(const Seen& window, double until_ns, LifeTable::ByAge& possible) const;

    std::deque<Seen> recent_;
    LifeTable::ByAge watched_{};   ///< ns²: time in the first window × time in the later one
    LifeTable::ByAge possible_{};  ///< the same, had the kind been armed throughout
};

/// What can be said of a block that was watched from its birth to `closed_ns`, and whose end was not seen up
/// to its present age.
struct Unseen {
    double alive = 1;      ///< P(it lives)
    double temporary = 0;  ///< P(it ended, unseen, before kTemporaryNs)
};
/// `table`, where there is one, is told the time that the block was at risk.
Unseen judge_unseen(const Survival& survival, const LifeTable::ByAge& armed, double closed_ns, double age_ns,
                    LifeTable* table);

}  // namespace memattach::profile
