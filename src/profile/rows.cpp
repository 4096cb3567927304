#include "memattach/profile/rows.h"

#include <algorithm>
#include <cmath>

#include "memattach/profile/estimate.h"

namespace memattach::profile {
namespace {

double percent(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(whole);
}

/// What rows are sorted by: CPU share plus memory share, so that either makes a row expensive.
double cost(const Figures& f) {
    return f.cpu_pct.value_or(0) + f.memory_pct.value_or(0);
}

}  // namespace

RowMaker::RowMaker(const trace::FunctionTable& functions, const StackTable& stacks,
                   const BuildOptions& options)
    : functions_(functions),
      stacks_(stacks),
      options_(options),
      charging_(functions, options.profile_all, options.only, options.exclude) {}

std::uint32_t RowMaker::path_id(const std::string& path) {
    const auto [it, added] = path_ids_.try_emplace(path, static_cast<std::uint32_t>(paths_.size()));
    if (added) paths_.push_back(path);
    return it->second;
}

std::uint32_t RowMaker::path_of(trace::FunctionId function) {
    const auto index = static_cast<std::size_t>(function);
    if (index >= path_by_function_.size()) path_by_function_.resize(functions_.size(), kUnknown);
    std::uint32_t& path = path_by_function_.at(index);
    if (path == kUnknown) {
        const trace::Function& f = functions_.at(function);
        path = path_id(f.file.empty() ? f.name : f.file);
    }
    return path;
}

RowMaker::Line& RowMaker::line_at(std::uint32_t path, std::uint32_t line, trace::FunctionId function) {
    // Places without a line number (native functions) are told apart by their function.
    constexpr std::uint64_t kByFunction = 1ULL << 63;
    const std::uint64_t key = line == 0 ? kByFunction | static_cast<std::uint64_t>(function)
                                        : (static_cast<std::uint64_t>(path) << 32) | line;
    const auto [it, added] = line_ids_.try_emplace(key, static_cast<std::uint32_t>(lines_.size()));
    if (added) lines_.push_back({path, line, function, 0, {}});
    return lines_[it->second];
}

RowMaker::Line& RowMaker::pseudo_line(const char* path) {
    const std::uint32_t id = path_id(path);
    const std::uint64_t key = (static_cast<std::uint64_t>(id) << 32) | 0;
    const auto [it, added] = line_ids_.try_emplace(key, static_cast<std::uint32_t>(lines_.size()));
    if (added) lines_.push_back({id, 0, kNoFunction, 0, {}});
    return lines_[it->second];
}

RowMaker::FunctionSums& RowMaker::function_at(trace::FunctionId function) {
    const auto index = static_cast<std::size_t>(function);
    if (index >= function_rows_.size()) function_rows_.resize(functions_.size(), kUnknown);
    std::uint32_t& row = function_rows_.at(index);
    if (row == kUnknown) {
        row = static_cast<std::uint32_t>(function_sums_.size());
        function_sums_.push_back({function, {}});
    }
    return function_sums_[row];
}

void RowMaker::add(const Cell& cell, const MemoryFigures* memory) {
    const std::uint64_t seen_by = ++cells_seen_;
    const auto add_self = [&](Sums& sums) {
        sums.self += cell.cpu;
        if (memory) sums.memory += *memory;
    };
    const auto add_total = [&](Sums& sums) {
        if (sums.seen_by == seen_by) return;  // recursion: a stack counts once
        sums.seen_by = seen_by;
        sums.total_samples += cell.cpu.samples;
        if (memory) sums.total_alloc += memory->alloc;
    };

    add_self(all_);
    stacks_.read(cell.stack, stack_);
    const std::optional<std::size_t> charged = charging_.charged(stack_);
    if (charged) {
        const trace::Frame& frame = stack_[*charged];
        Line& line = line_at(path_of(frame.function), frame.line, frame.function);
        add_self(line.sums);
        const std::uint64_t weight =
            cell.cpu.samples + cell.cpu.wait + (memory ? memory->alloc.samples() : 0);
        if (weight > line.function_weight) {
            line.function = frame.function;
            line.function_weight = weight;
        }
        add_self(function_at(frame.function).sums);
    } else {
        Line& line = pseudo_line(stack_.empty() ? kNoStack : kOtherCode);
        add_self(line.sums);
        add_total(line.sums);
    }
    for (std::size_t i = 0; i < stack_.size(); ++i) {
        const trace::Frame& frame = stack_[i];
        const bool own = charged && *charged == i;
        if (!own && !options_.profile_all && !charging_.is_user(frame.function)) continue;
        add_total(line_at(path_of(frame.function), frame.line, frame.function).sums);
        add_total(function_at(frame.function).sums);
    }
    if (options_.by_thread) {
        auto thread = std::find_if(threads_.begin(), threads_.end(), [&](const ThreadSums& t) {
            return t.pid == cell.pid && t.tid == cell.tid;
        });
        if (thread == threads_.end()) thread = threads_.insert(thread, {cell.pid, cell.tid, {}});
        add_self(thread->sums);
        add_total(thread->sums);
    }
}

void RowMaker::write_memory(Figures& f, const MemoryFigures& memory, const AllWindowTimes& times,
                            double duration_s, bool is_counted) {
    const double alloc = memory.alloc.value();
    const double live = std::max(0.0, memory.live.value());
    f.alloc_bytes = alloc;
    f.alloc_ci95 = memory.alloc.uncertainty(times).half_width95();
    f.alloc_count = memory.count.value();
    f.alloc_count_ci95 = memory.count.uncertainty(times).half_width95();
    f.live_bytes = live;
    // Where hardly a sampled block lives, a few may all the same.
    const double unseen = memory.alloc.most_unseen();
    const double unseen_live = is_counted ? 0 : unseen;
    f.live_ci95 = std::max(memory.live.uncertainty(times).half_width95(), unseen_live);
    f.live_unconfirmed_bytes = memory.unconfirmed;
    f.freed_bytes = std::max(0.0, alloc - live);
    f.freed_ci95 = std::max(memory.alloc.without(memory.live).uncertainty(times).half_width95(), unseen);
    f.peak_bytes = std::max(0.0, memory.peak);
    f.peak_ci95 = kZ95 * std::sqrt(memory.peak_variance);
    f.temporary_bytes = memory.temporary.value();
    f.temporary_ci95 = memory.temporary.uncertainty(times).half_width95();
    if (duration_s >= 1) {
        f.growth_bytes_per_min = memory.growth.value();
        // Least squares: a block that stays adds most to the slope where it is born in the middle, 3/2 of its
        // bytes by the session's length.
        f.growth_ci95 =
            std::max(memory.growth.uncertainty(times).half_width95(), unseen_live * 1.5 * 60 / duration_s);
    }
}

/// Of a row's share of all bytes, in percentage points: both the row and the rest are known only so well.
double RowMaker::share_half_width(const SampleSum& row, const AllWindowTimes& times) const {
    const double all = all_.memory.alloc.value();
    if (!(all > 0)) return 100;
    const double share = std::min(1.0, row.value() / all);
    const double of_row = row.uncertainty(times).half_width95();
    const double of_rest = all_.memory.alloc.without(row).uncertainty(times).half_width95();
    return std::min(100.0, 100 * std::hypot((1 - share) * of_row, share * of_rest) / all);
}

Figures RowMaker::figures_of(const Sums& sums, const Measured& measured) const {
    Figures f;
    if (options_.memory) {
        write_memory(f, sums.memory, measured.times, measured.duration_s);
        const double missed = std::max(measured.missed_bytes, measured.uncharged_live);
        for (auto half_width : {&Figures::live_ci95, &Figures::peak_ci95})
            f.*half_width = std::max((f.*half_width).value_or(0), measured.uncharged_live);
        f.alloc_ci95 = std::max(f.alloc_ci95.value_or(0), missed);
        f.alloc_count_ci95 = std::max(f.alloc_count_ci95.value_or(0), measured.missed_count);
        f.alloc_total_bytes = sums.total_alloc.value();
        f.alloc_total_ci95 = std::max(sums.total_alloc.uncertainty(measured.times).half_width95(), missed);
        // A row that few windows hit knows little by itself, but it is a part of the whole.
        const auto cap = [](double half_width, double value, double whole, double whole_half_width) {
            return std::min(half_width, std::max(value, whole + whole_half_width - value));
        };
        const auto cap_figure = [&](std::optional<double> Figures::*value,
                                    std::optional<double> Figures::*half) {
            f.*half = cap((f.*half).value_or(0), (f.*value).value_or(0), (measured.all.*value).value_or(0),
                          (measured.all.*half).value_or(0));
        };
        cap_figure(&Figures::alloc_bytes, &Figures::alloc_ci95);
        cap_figure(&Figures::alloc_count, &Figures::alloc_count_ci95);
        cap_figure(&Figures::freed_bytes, &Figures::freed_ci95);
        cap_figure(&Figures::live_bytes, &Figures::live_ci95);
        cap_figure(&Figures::peak_bytes, &Figures::peak_ci95);
        cap_figure(&Figures::temporary_bytes, &Figures::temporary_ci95);
        const double all = all_.memory.alloc.value();
        f.memory_pct = all > 0 ? 100 * *f.alloc_bytes / all : 0;
        f.memory_ci95 = std::max(share_half_width(sums.memory.alloc, measured.times),
                                 all > 0 ? std::min(100.0, 100 * missed / all) : 0);
    }
    if (options_.cpu) {
        const CpuCounts& self = sums.self;
        f.cpu_samples = self.samples;
        f.cpu_pct = percent(self.samples, all_.self.samples);
        f.cpu_ci95 = 100 * share_ci95(self.samples, all_.self.samples);
        f.cpu_total_pct = percent(sums.total_samples, all_.self.samples);
        if (all_.self.wait > 0) f.wait_samples = self.wait;
        if (const std::uint64_t known = self.python + self.native + self.system; known > 0) {
            f.python_pct = percent(self.python, known);
            f.native_pct = percent(self.native, known);
            f.system_pct = percent(self.system, known);
        }
        if (self.samples > 0 && options_.gil) f.gil_pct = percent(self.gil, self.samples);
    }
    return f;
}

void RowMaker::write_files(Profile& profile, const Measured& measured) const {
    std::vector<std::size_t> file_of(paths_.size(), ~std::size_t{0});
    std::vector<Sums> sums;
    std::vector<LeakCandidate> candidates;
    for (const Line& line : lines_) {
        if (file_of[line.path] == ~std::size_t{0}) {
            file_of[line.path] = profile.files.size();
            FileRow file;
            file.path = paths_[line.path];
            file.user_code = line.function != kNoFunction && charging_.is_user(line.function);
            profile.files.push_back(std::move(file));
            sums.emplace_back();
        }
        FileRow& file = profile.files[file_of[line.path]];
        LineRow row;
        row.line = line.line;
        row.function = line.function == kNoFunction ? paths_[line.path] : functions_.at(line.function).name;
        row.figures = figures_of(line.sums, measured);
        const bool has_source = line.line > 0 && line.function != kNoFunction &&
                                functions_.at(line.function).kind == trace::FunctionKind::python;
        if (has_source && options_.source_line) row.code = options_.source_line(file.path, line.line);
        if (options_.memory && line.sums.memory.alloc.samples() > 0 && line.function != kNoFunction) {
            candidates.push_back({file.path, row.function, row.code, row.line, &line.sums.memory});
        }
        file.lines.push_back(std::move(row));
        sums[file_of[line.path]].self += line.sums.self;
        sums[file_of[line.path]].memory += line.sums.memory;
    }
    for (std::size_t i = 0; i < profile.files.size(); ++i) {
        FileRow& file = profile.files[i];
        file.figures = figures_of(sums[i], measured);
        // Lines call each other: a file's total is not the sum of its lines'.
        file.figures.cpu_total_pct.reset();
        file.figures.alloc_total_bytes.reset();
        file.figures.alloc_total_ci95.reset();
        std::sort(file.lines.begin(), file.lines.end(), [](const LineRow& a, const LineRow& b) {
            return a.line != b.line ? a.line < b.line : a.function < b.function;
        });
    }
    profile.leaks =
        find_leaks(candidates, measured.times,
                   {measured.duration_s, options_.memory_limit_bytes, profile.totals.rss_end_bytes});
    std::stable_sort(profile.files.begin(), profile.files.end(), [](const FileRow& a, const FileRow& b) {
        const double ca = cost(a.figures);
        const double cb = cost(b.figures);
        return ca != cb ? ca > cb : a.path < b.path;
    });
}

void RowMaker::write_functions(Profile& profile, const Measured& measured) const {
    for (const FunctionSums& function : function_sums_) {
        const trace::Function& f = functions_.at(function.function);
        profile.functions.push_back({f.name, f.file, f.first_line, figures_of(function.sums, measured)});
    }
    std::stable_sort(profile.functions.begin(), profile.functions.end(),
                     [](const FunctionRow& a, const FunctionRow& b) {
                         const double ca = cost(a.figures);
                         const double cb = cost(b.figures);
                         if (ca != cb) return ca > cb;
                         return a.path != b.path ? a.path < b.path : a.first_line < b.first_line;
                     });
}

void RowMaker::write_totals(Profile& profile, const Measured& measured) const {
    Totals& totals = profile.totals;
    totals.cpu_samples = all_.self.samples;
    if (!options_.memory) return;
    const Figures& f = measured.all;
    totals.alloc_bytes = f.alloc_bytes;
    totals.alloc_ci95 = f.alloc_ci95;
    totals.alloc_count = f.alloc_count;
    totals.alloc_count_ci95 = f.alloc_count_ci95;
    totals.freed_bytes = f.freed_bytes;
    totals.freed_ci95 = f.freed_ci95;
    totals.live_bytes = f.live_bytes;
    totals.live_ci95 = f.live_ci95;
    totals.peak_bytes = f.peak_bytes;
    totals.peak_ci95 = f.peak_ci95;
}

bool RowMaker::is_worth_saying(double uncharged_live, double live) {
    return uncharged_live > 1e6 && uncharged_live > 0.05 * live;
}

void RowMaker::write(Profile& profile, const ThreadNames& names, const AllWindowTimes& times,
                     double duration_s, double uncharged_live, bool is_counted) const {
    Measured measured{
        times, duration_s, {}, all_.memory.alloc.most_missed(times), all_.memory.count.most_missed(times)};
    if (options_.memory) write_memory(measured.all, all_.memory, times, duration_s, is_counted);
    if (is_worth_saying(uncharged_live, measured.all.live_bytes.value_or(0))) {
        measured.uncharged_live = uncharged_live;
        // It was allocated, it lives, and at the peak some of it did.
        for (auto half_width : {&Figures::alloc_ci95, &Figures::live_ci95, &Figures::peak_ci95})
            measured.all.*half_width = std::hypot((measured.all.*half_width).value_or(0), uncharged_live);
    }
    write_totals(profile, measured);
    write_files(profile, measured);
    write_functions(profile, measured);
    for (const ThreadSums& thread : threads_) {
        const auto name = names.by_id.find(ThreadNames::key_of(thread.pid, thread.tid));
        profile.threads.push_back({thread.pid, thread.tid, name == names.by_id.end() ? "" : name->second,
                                   figures_of(thread.sums, measured)});
    }
    std::stable_sort(
        profile.threads.begin(), profile.threads.end(),
        [](const ThreadRow& a, const ThreadRow& b) { return cost(a.figures) > cost(b.figures); });
}

}  // namespace memattach::profile
