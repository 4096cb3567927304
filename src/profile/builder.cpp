#include "memattach/profile/builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "memattach/profile/advice.h"
#include "memattach/profile/cells.h"
#include "memattach/profile/hotspots.h"
#include "memattach/profile/ledger.h"
#include "memattach/profile/rows.h"

namespace memattach::profile {
namespace {

using SourceLine = std::function<std::string(const std::string& path, std::uint32_t line)>;

void add_sources(Profile& profile, const SourceLine& source_line) {
    constexpr std::uint32_t kAround = 6;
    constexpr std::size_t kMostLines = 20'000;
    constexpr std::size_t kLongestLine = 500;
    std::size_t count = 0;
    for (const FileRow& file : profile.files) {
        if (!file.user_code) continue;
        std::set<std::uint32_t> wanted;
        for (const LineRow& row : file.lines) {
            if (row.line == 0 || row.code.empty()) continue;
            const std::uint32_t first = row.line > kAround ? row.line - kAround : 1;
            for (std::uint32_t line = first; line <= row.line + kAround; ++line) wanted.insert(line);
        }
        count += wanted.size();
        if (wanted.empty() || count > kMostLines) continue;
        SourceExcerpt excerpt{file.path, {}};
        for (const std::uint32_t line : wanted) {
            excerpt.lines.emplace_back(line, source_line(file.path, line).substr(0, kLongestLine));
        }
        // Past the end of the file there are only empty lines.
        while (!excerpt.lines.empty() && excerpt.lines.back().second.empty()) excerpt.lines.pop_back();
        profile.sources.push_back(std::move(excerpt));
    }
}

}  // namespace

struct Builder::Impl {
    const trace::FunctionTable& functions;
    BuildOptions options;
    StackTable stacks;
    CellTable cells;
    RowMaker::ThreadNames thread_names;
    std::vector<TimelinePoint> timeline;
    Ledger ledger;
    std::map<int, TimeShares> time_shares;  ///< by process

    [[nodiscard]] CellId cell(StackId stack, std::int32_t pid, std::int32_t tid) {
        return cells.find(stack, pid, options.by_thread ? tid : 0);
    }
};

Builder::Builder(const trace::FunctionTable& functions, const BuildOptions& options)
    : impl_(std::make_unique<Impl>(Impl{functions, options, {}, {}, {}, {}, Ledger(options.start_ns), {}})) {}

Builder::~Builder() = default;

StackId Builder::intern(const trace::Stack& stack) {
    return impl_->stacks.intern(stack);
}

void Builder::add(const trace::CpuSample& sample, StackId stack) {
    impl_->cells.at(impl_->cell(stack, sample.pid, sample.tid)).cpu.add(sample);
}

void Builder::add(const trace::Alloc& alloc, StackId stack) {
    if (impl_->options.memory) impl_->ledger.add(alloc, impl_->cell(stack, alloc.pid, alloc.tid));
}

void Builder::add(const trace::Free& free) {
    if (impl_->options.memory) impl_->ledger.add(free);
}

void Builder::add(const trace::Window& window) {
    if (impl_->options.memory) impl_->ledger.add(window);
}

void Builder::add(const trace::Unseen& unseen) {
    if (impl_->options.memory) impl_->ledger.add(unseen);
}

void Builder::add(const trace::LiveBlocks& blocks) {
    if (impl_->options.memory) impl_->ledger.add(blocks);
}

void Builder::add(const TimelinePoint& point) {
    // Ten points a second for an hour; then every other one goes, and so on.
    constexpr std::size_t kMaxPoints = 36'000;
    std::vector<TimelinePoint>& timeline = impl_->timeline;
    timeline.push_back(point);
    if (impl_->options.memory && !point.live_bytes) {
        timeline.back().live_bytes = std::max(0.0, impl_->ledger.live_now());
    }
    if (timeline.size() < kMaxPoints) return;
    for (std::size_t i = 0; 2 * i < timeline.size(); ++i) timeline[i] = timeline[2 * i];
    timeline.resize(timeline.size() / 2);
}

void Builder::add_place(const trace::CpuSample& sample, StackId stack) {
    if (!impl_->options.memory || !sample.on_cpu || sample.mode == trace::CpuMode::system) return;
    impl_->time_shares[sample.pid].add(sample.time_ns, stack);
}

void Builder::spread(int pid, trace::AllocKind kind, std::span<TimeShares::Place> windows) {
    impl_->time_shares[pid].spread(impl_->stacks, kind, windows);
}

void Builder::name_thread(int pid, int tid, const std::string& name) {
    impl_->thread_names.by_id[RowMaker::ThreadNames::key_of(pid, tid)] = name;
}

Profile Builder::finish(const Target& target, const Session& session, const Totals& known_totals) const {
    Profile profile;
    profile.target = target;
    profile.session = session;
    profile.totals = known_totals;
    profile.timeline = impl_->timeline;
    for (std::size_t i = 0; i < impl_->functions.size(); ++i) {
        profile.function_table.push_back(impl_->functions.at(static_cast<trace::FunctionId>(i)));
    }
    const Ledger::Result memory =
        impl_->options.memory ? impl_->ledger.evaluate(impl_->options.start_ns +
                                                       static_cast<std::uint64_t>(session.duration_s * 1e9))
                              : Ledger::Result{};
    const AllWindowTimes& times = impl_->ledger.window_times();
    const double memory_s = memory.duration_ns * 1e-9;
    std::vector<const MemoryFigures*> memory_of(impl_->cells.all().size());
    for (const auto& [cell, figures] : memory.cells) memory_of[static_cast<std::size_t>(cell)] = &figures;
    RowMaker rows(impl_->functions, impl_->stacks, impl_->options);
    for (std::size_t i = 0; i < impl_->cells.all().size(); ++i) {
        const Cell& cell = impl_->cells.all()[i];
        rows.add(cell, memory_of[i]);
        StackRow row;
        impl_->stacks.read(cell.stack, row.frames);
        row.pid = cell.pid;
        row.tid = cell.tid;
        row.cpu_samples = cell.cpu.samples;
        row.python_samples = cell.cpu.python;
        row.native_samples = cell.cpu.native;
        row.system_samples = cell.cpu.system;
        row.gil_samples = cell.cpu.gil;
        row.wait_samples = cell.cpu.wait;
        if (impl_->options.memory) {
            static const MemoryFigures kNothing;
            const MemoryFigures& figures = memory_of[i] ? *memory_of[i] : kNothing;
            Figures f;
            RowMaker::write_memory(f, figures, times, memory_s);
            row.alloc_bytes = f.alloc_bytes;
            row.alloc_variance = figures.alloc.uncertainty(times).variance;
            row.alloc_count = f.alloc_count;
            row.freed_bytes = f.freed_bytes;
            row.live_bytes = f.live_bytes;
            row.peak_bytes = f.peak_bytes;
            row.temporary_bytes = f.temporary_bytes;
        }
        profile.stacks.push_back(std::move(row));
    }
    rows.write(profile, impl_->thread_names, times, memory_s, memory.uncharged_live, memory.is_counted);
    if (impl_->options.memory) profile.totals.unknown_frees = impl_->ledger.unknown_frees();
    if (profile.totals.cpu_s == 0 && session.rate_hz > 0) {
        profile.totals.cpu_s = static_cast<double>(profile.totals.cpu_samples) / session.rate_hz;
    }
    if (const std::uint64_t cut = impl_->stacks.cut(); cut > 0) {
        profile.session.notes.push_back(
            fmt::format("{} stacks were cut to their innermost frame: the program has more than {} distinct "
                        "call paths",
                        cut, StackTable::kMaxNodes));
    }
    if (memory.uncharged_live > 0) profile.totals.live_uncharged_bytes = memory.uncharged_live;
    if (RowMaker::is_worth_saying(memory.uncharged_live, profile.totals.live_bytes.value_or(0))) {
        profile.session.notes.push_back(fmt::format(
            "{:.1f} MB more live than the lines have: blocks of sizes of which no sample is among the living",
            memory.uncharged_live / 1e6));
    }
    profile.hotspots = find_hotspots(profile);
    for (Hotspot& hotspot : profile.hotspots) {
        if (hotspot.metric != "memory" || hotspot.code.empty() || !impl_->options.source_line) continue;
        hotspot.advice = memory_advice(
            hotspot.line, [&](std::uint32_t line) { return impl_->options.source_line(hotspot.path, line); });
    }
    if (impl_->options.source_line) add_sources(profile, impl_->options.source_line);
    return profile;
}

}  // namespace memattach::profile
