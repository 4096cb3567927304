/// The result of a session: one model that every output renders, and that a JSON file holds whole.
///
///     Builder builder(table, options);        // profile/builder.h
///     builder.add(sample, stack); builder.add(alloc, stack); builder.add(free); …
///     Profile profile = builder.finish(session);   // all estimates, rows, hotspots and leaks
///
/// Unknown is std::nullopt (null in JSON), never 0. All byte figures are estimates of bytes requested, as
/// doubles.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "memattach/trace/events.h"
#include "memattach/trace/frame.h"

namespace memattach::profile {

struct Target {
    int pid = 0;
    std::string command;  ///< the command line, arguments joined by spaces
    std::string python;   ///< "3.11.2", "3.14.0 free-threaded"
    std::string exe;
};

struct Session {
    std::string started;  ///< RFC 3339, UTC
    double duration_s = 0;
    std::string engine_cpu;       ///< "perf", "timer", "blocking"; empty: lens off
    std::string engine_alloc;     ///< "ptrace"; empty: lens off
    std::string engine_resident;  ///< empty: lens off
    double rate_hz = 0;
    double threshold_bytes = 0;
    /// Share of the target's own time in which allocations were watched, 0…1, per kind.
    std::optional<double> coverage_malloc;
    std::optional<double> coverage_object;
    /// The same for malloc's blocks of `large_from_bytes` and more, where they are seen apart from the
    /// others.
    std::optional<double> coverage_large;
    std::optional<std::uint64_t> large_from_bytes;
    std::optional<double> overhead_pct;
    double stopped_s = 0;
    double longest_stop_us = 0;
    std::optional<bool> text_verified;
    bool target_exited = false;
    trace::LossCounts loss;
    std::vector<std::string>
        notes;  ///< what the reader must know: "no Python/native split: perf_event_paranoid is 3"
};

/// Paths of the rows that belong to no file: samples without any frame, and stacks of which the filters left
/// nothing.
inline constexpr const char* kNoStack = "[no stack]";
inline constexpr const char* kOtherCode = "[other code]";

/// A block is temporary when it is freed this soon after it was allocated. The one definition.
inline constexpr std::uint64_t kTemporaryNs = 10'000'000;

/// The figures of one row. The same for lines, functions, threads and stacks. Rows of `lines` and `functions`
/// are self figures: charged to the innermost frame of the user's code; `*_total_*` count all stacks that the
/// row appears in, once each; lines of the user's code that only call others have rows with zero self
/// figures.
struct Figures {
    // memory; all absent when the lens was off
    std::optional<double> alloc_bytes;
    std::optional<double> alloc_ci95;  ///< half width, bytes
    std::optional<double> alloc_count;
    std::optional<double> alloc_count_ci95;
    std::optional<double> freed_bytes;
    std::optional<double> freed_ci95;
    std::optional<double> live_bytes;  ///< alloc_bytes − freed_bytes
    std::optional<double> live_ci95;
    std::optional<double>
        live_unconfirmed_bytes;  ///< part of live_bytes that could not be looked at at the end
    std::optional<double> peak_bytes;
    std::optional<double> peak_ci95;
    std::optional<double> temporary_bytes;
    std::optional<double> temporary_ci95;
    std::optional<double> growth_bytes_per_min;
    std::optional<double> growth_ci95;  ///< half width
    std::optional<double> resident_bytes;
    std::optional<double> memory_pct;   ///< share of allocated bytes
    std::optional<double> memory_ci95;  ///< half width, percentage points
    std::optional<double> alloc_total_bytes;
    std::optional<double> alloc_total_ci95;
    // CPU; absent when the lens was off
    std::optional<double> cpu_pct;     ///< share of the samples taken on CPU
    std::optional<double> cpu_ci95;    ///< half width, percentage points
    std::optional<double> python_pct;  ///< these three split the row's own samples and add to 100
    std::optional<double> native_pct;
    std::optional<double> system_pct;
    std::optional<double> gil_pct;  ///< of the row's own samples, those holding the GIL
    std::optional<std::uint64_t> cpu_samples;
    std::optional<std::uint64_t> wait_samples;  ///< with --idle
    std::optional<double> cpu_total_pct;
};

struct LineRow {
    std::uint32_t line = 0;
    std::string function;  ///< qualified name
    std::string code;      ///< the source line, where it could be read; else empty
    Figures figures;
};

struct FileRow {
    std::string path;
    bool user_code = true;
    Figures figures;             ///< sums of its lines
    std::vector<LineRow> lines;  ///< by line number
};

struct FunctionRow {
    std::string name;
    std::string path;
    std::uint32_t first_line = 0;
    Figures figures;
};

struct ThreadRow {
    int pid = 0;
    int tid = 0;
    std::string name;
    Figures figures;
};

/// Interned stacks, from which every other view can be made again.
struct StackRow {
    std::vector<trace::Frame> frames;  ///< innermost first; FunctionId indexes Profile::function_table
    int pid = 0;
    int tid = 0;  ///< 0 unless --threads
    std::uint64_t cpu_samples = 0;
    std::uint64_t python_samples = 0;
    std::uint64_t native_samples = 0;
    std::uint64_t system_samples = 0;
    std::uint64_t gil_samples = 0;
    std::uint64_t wait_samples = 0;
    std::optional<double> alloc_bytes;
    std::optional<double> alloc_variance;
    std::optional<double> alloc_count;
    std::optional<double> freed_bytes;
    std::optional<double> live_bytes;
    std::optional<double> peak_bytes;
    std::optional<double> temporary_bytes;
};

struct TimelinePoint {
    double t_s = 0;
    std::optional<double> rss_bytes;
    std::optional<double> live_bytes;
    std::optional<double> cpu_pct;  ///< 100 = one core
};

struct Totals {
    std::optional<double> alloc_bytes, alloc_ci95, alloc_count, alloc_count_ci95, freed_bytes, freed_ci95;
    std::optional<double> live_bytes, live_ci95, peak_bytes, peak_ci95;
    /// Live by the allocators' own count, on top of live_bytes: blocks of sizes of which no sample tells
    /// whose they are.
    std::optional<double> live_uncharged_bytes;
    std::optional<double> rss_start_bytes, rss_end_bytes, rss_peak_bytes;
    std::optional<double> before_attach_bytes;  ///< resident at attach: never smeared over lines
    std::optional<std::uint64_t> unknown_frees;
    double cpu_s = 0;
    std::uint64_t cpu_samples = 0;
};

struct Hotspot {
    std::string path, function, metric, code, advice;  ///< metric: "memory", "cpu"; advice may be empty
    std::uint32_t line = 0;
    double share_pct = 0;
};

struct Leak {
    std::string path, function, code, evidence;
    std::uint32_t line = 0;
    double growth_bytes_per_min = 0;
    double growth_ci95 = 0;
    double live_bytes = 0;
    double confidence = 0;  ///< 0…1
    std::optional<double> seconds_to_limit;
};

/// The source around the lines that have figures, of files of the user's code that could be read.
struct SourceExcerpt {
    std::string path;
    std::vector<std::pair<std::uint32_t, std::string>> lines;  ///< number and text, ascending, with gaps
};

struct Profile {
    Target target;
    Session session;
    Totals totals;
    std::vector<trace::Function> function_table;
    std::vector<FileRow> files;          ///< most expensive first
    std::vector<FunctionRow> functions;  ///< most expensive first
    std::vector<ThreadRow> threads;
    std::vector<StackRow> stacks;
    std::vector<TimelinePoint> timeline;
    std::vector<SourceExcerpt> sources;
    std::vector<Hotspot> hotspots;
    std::vector<Leak> leaks;
};

/// Throws std::logic_error where the profile contradicts itself: totals that are not the sum of their parts,
/// allocated − freed ≠ live, a split that doesn't add to 100. Run after every profile in tests and once
/// before anything is written.
void check(const Profile& profile);

}  // namespace memattach::profile
