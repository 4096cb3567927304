/// Live blocks of which the allocator keeps count (trace::LiveBlocks): how many there are of each size is
/// known, whose they are is estimated from the samples of that size. What a cell's samples of a size come to
/// is therefore multiplied by
///
///     counted blocks / (sampled blocks that live + blocks that live briefly, as many as there are on
///     average)
///
/// A ratio estimate: how few windows there were, and how long they were, moves the cells of one size against
/// each other, but not their sum. A size that only one line's blocks are live of is known as well as it was
/// counted, however few of them were seen.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <unordered_map>

#include "memattach/profile/ledger.h"

namespace memattach::profile {

/// Of the blocks that have ended so many seem to live on: another one of their kind has taken their place
/// before the first look. Counted: 3 of 405 and of 1,237, 17 of some 5,000.
inline constexpr double kMistaken = 0.006;

class Ledger::CountedParts {
  public:
    /// What one account has of one size class.
    struct Part {
        SampleSum blocks, live, growth;
        double unconfirmed = 0;
        std::optional<double> late_growth;  ///< MemoryFigures
        double sampled = 0;                 ///< live bytes by the samples alone
        /// How many of all the sampled blocks of this size are expected to seem alive and not to be.
        double mistaken = 0;
        bool lives = false;  ///< one of its blocks does; else it has brief ones only
    };

    CountedParts(const Ledger& ledger, double now_ns) : ledger_(ledger), now_ns_(now_ns) {}
    /// A block that lives. `slope`: growth in bytes per minute for each of its bytes.
    void add(const Block& block, std::uint32_t size_class, double slope);
    /// One that lives, and whose end would have been seen.
    void add_known(const Block& block);
    /// Hands on every account's parts as they are when all is counted. Returns the bytes of sizes of which
    /// nobody has a living block: brief ones don't say whose those are that stay.
    double settle(const std::function<void(std::uint32_t account, Part& part)>& take);

  private:
    using Key = std::uint64_t;  ///< account and size class
    static Key key_of(std::uint32_t account, std::uint32_t size_class) {
        return std::uint64_t{account} * trace::LiveBlocks::kClasses + size_class;
    }
    void add_brief();

    const Ledger& ledger_;
    double now_ns_;
    std::unordered_map<Key, Part> parts_;
    struct Seen {
        double blocks = 0, bytes = 0, variance = 0;
    };
    std::map<std::pair<std::int32_t, std::uint32_t>, Seen> seen_;  ///< by process and size class
};

}  // namespace memattach::profile
