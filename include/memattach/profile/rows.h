#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "memattach/profile/builder.h"
#include "memattach/profile/cells.h"
#include "memattach/profile/leaks.h"
#include "memattach/profile/ledger.h"
#include "memattach/profile/profile.h"
#include "memattach/profile/user_code.h"

namespace memattach::profile {

/// Turns cells into rows: charges each cell to one line and one function (self), and to every line and
/// function that its stack passes through, once each (total).
class RowMaker {
  public:
    RowMaker(const trace::FunctionTable& functions, const StackTable& stacks, const BuildOptions& options);

    /// `memory`: what the ledger has of the cell; null: nothing.
    void add(const Cell& cell, const MemoryFigures* memory);

    struct ThreadNames {
        std::unordered_map<std::uint64_t, std::string> by_id;  ///< key_of(pid, tid)
        static std::uint64_t key_of(std::int32_t pid, std::int32_t tid) {
            return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(pid)) << 32) |
                   static_cast<std::uint32_t>(tid);
        }
    };
    /// Fills files, functions, threads, leaks, and those of the totals that rows are parts of. `times`,
    /// `duration_s`, `uncharged_live` and `is_counted` are the ledger's.
    void write(Profile& profile, const ThreadNames& names, const AllWindowTimes& times, double duration_s,
               double uncharged_live, bool is_counted) const;
    /// Where so much lives besides what the rows have, any of them may have it.
    [[nodiscard]] static bool is_worth_saying(double uncharged_live, double live);

    /// The memory figures of a row. `is_counted`: what it has no sample of is in its live bytes all the same.
    static void write_memory(Figures& figures, const MemoryFigures& memory, const AllWindowTimes& times,
                             double duration_s, bool is_counted = false);

  private:
    struct Sums {
        CpuCounts self;
        MemoryFigures memory;
        std::uint64_t total_samples = 0;
        SampleSum total_alloc;
        std::uint64_t seen_by = 0;  ///< the last cell that was added to the totals, plus one
    };
    struct Line {
        std::uint32_t path;
        std::uint32_t line;
        trace::FunctionId function;  ///< the heaviest of those on the line
        std::uint64_t function_weight = 0;
        Sums sums;
    };
    struct FunctionSums {
        trace::FunctionId function;
        Sums sums;
    };
    struct ThreadSums {
        std::int32_t pid, tid;
        Sums sums;
    };

    std::uint32_t path_of(trace::FunctionId function);
    std::uint32_t path_id(const std::string& path);
    Line& line_at(std::uint32_t path, std::uint32_t line, trace::FunctionId function);
    Line& pseudo_line(const char* path);
    FunctionSums& function_at(trace::FunctionId function);
    struct Measured {
        const AllWindowTimes& times;
        double duration_s;
        Figures all;                                ///< of everything; memory alone
        double missed_bytes = 0, missed_count = 0;  ///< what a row may have that no window met
        double uncharged_live = 0;                  ///< 0 where it isn't worth saying
    };
    [[nodiscard]] double share_half_width(const SampleSum& row, const AllWindowTimes& times) const;
    [[nodiscard]] Figures figures_of(const Sums& sums, const Measured& measured) const;
    void write_files(Profile& profile, const Measured& measured) const;
    void write_functions(Profile& profile, const Measured& measured) const;
    void write_totals(Profile& profile, const Measured& measured) const;

    const trace::FunctionTable& functions_;
    const StackTable& stacks_;
    const BuildOptions& options_;
    Charging charging_;

    static constexpr std::uint32_t kUnknown = ~0U;
    static constexpr auto kNoFunction = static_cast<trace::FunctionId>(~0U);
    std::vector<std::string> paths_;
    std::unordered_map<std::string, std::uint32_t> path_ids_;
    std::vector<std::uint32_t> path_by_function_;
    std::unordered_map<std::uint64_t, std::uint32_t> line_ids_;
    std::deque<Line> lines_;
    std::vector<std::uint32_t> function_rows_;
    std::deque<FunctionSums> function_sums_;
    std::vector<ThreadSums> threads_;
    Sums all_;
    std::uint64_t cells_seen_ = 0;
    trace::Stack stack_;
};

}  // namespace memattach::profile
