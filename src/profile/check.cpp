#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string_view>

#include "memattach/profile/figures.h"
#include "memattach/profile/profile.h"

namespace memattach::profile {
namespace {

template <typename... Args>
[[noreturn]] void contradiction(fmt::format_string<Args...> format, Args&&... args) {
    throw std::logic_error("the profile contradicts itself: " +
                           fmt::format(format, std::forward<Args>(args)...));
}

/// Equal up to rounding, on the scale of what was added up.
bool same(double a, double b, double scale) {
    return std::abs(a - b) <= 1e-6 * std::max({std::abs(a), std::abs(b), std::abs(scale), 1.0});
}

void check_number(const std::optional<double>& value, const char* name, const std::string& where,
                  bool may_be_negative = false) {
    if (!value) return;
    if (!std::isfinite(*value)) contradiction("{} of {} is not a finite number", name, where);
    if (*value < 0 && !may_be_negative) contradiction("{} of {} is negative: {}", name, where, *value);
}

void check_figures(const Figures& f, const std::string& where) {
    visit_figures(f, [&](const char* name, const auto& value) {
        const bool may_be_negative = std::string_view(name) == "growth_bytes_per_min";
        if (value) check_number(static_cast<double>(*value), name, where, may_be_negative);
    });
    if (f.alloc_bytes && f.freed_bytes && f.live_bytes &&
        !same(*f.alloc_bytes - *f.freed_bytes, *f.live_bytes, *f.alloc_bytes)) {
        contradiction("{}: allocated {} − freed {} ≠ live {}", where, *f.alloc_bytes, *f.freed_bytes,
                      *f.live_bytes);
    }
    if (f.live_unconfirmed_bytes && f.live_bytes &&
        *f.live_unconfirmed_bytes > *f.live_bytes * (1 + 1e-6) + 1) {
        contradiction("{}: more bytes live unconfirmed ({}) than live ({})", where, *f.live_unconfirmed_bytes,
                      *f.live_bytes);
    }
    if (f.temporary_bytes && f.freed_bytes && *f.temporary_bytes > *f.freed_bytes * (1 + 1e-6) + 1) {
        contradiction("{}: more bytes temporary ({}) than freed ({})", where, *f.temporary_bytes,
                      *f.freed_bytes);
    }
    if (f.alloc_total_bytes && f.alloc_bytes && *f.alloc_total_bytes < *f.alloc_bytes * (1 - 1e-6) - 1) {
        contradiction("{}: total {} is less than self {}", where, *f.alloc_total_bytes, *f.alloc_bytes);
    }
    const bool split = f.python_pct && f.native_pct && f.system_pct;
    if (split && !same(*f.python_pct + *f.native_pct + *f.system_pct, 100, 100)) {
        contradiction("{}: Python {} + native {} + system {} ≠ 100", where, *f.python_pct, *f.native_pct,
                      *f.system_pct);
    }
    if (!split && (f.python_pct || f.native_pct || f.system_pct)) {
        contradiction("{} has part of a Python/native/system split", where);
    }
    if (f.cpu_pct && f.cpu_total_pct && *f.cpu_total_pct < *f.cpu_pct - 1e-6) {
        contradiction("{}: total CPU {} is less than self {}", where, *f.cpu_total_pct, *f.cpu_pct);
    }
}

/// Adds up what rows have and compares with the whole. A figure that the whole hasn't may be in no row.
class Sum {
  public:
    explicit Sum(std::string what) : what_(std::move(what)) {}
    void add(const std::optional<double>& part) {
        if (!part) return;
        sum_ += *part;
        scale_ += std::abs(*part);
        any_ = true;
    }
    void compare(const std::optional<double>& whole) const {
        if (!whole && any_) contradiction("{}: parts without a whole", what_);
        if (whole && !same(sum_, *whole, scale_)) {
            contradiction("{} add up to {}, the whole is {}", what_, sum_, *whole);
        }
    }

  private:
    std::string what_;
    double sum_ = 0;
    double scale_ = 0;
    bool any_ = false;
};

struct FigureSums {
    explicit FigureSums(const std::string& of)
        : alloc(of + "' allocated bytes"),
          count(of + "' allocation counts"),
          freed(of + "' freed bytes"),
          live(of + "' live bytes"),
          peak(of + "' bytes at the peak"),
          samples(of + "' CPU samples") {}
    void add(const Figures& f) {
        alloc.add(f.alloc_bytes);
        count.add(f.alloc_count);
        freed.add(f.freed_bytes);
        live.add(f.live_bytes);
        peak.add(f.peak_bytes);
        if (f.cpu_samples) samples.add(static_cast<double>(*f.cpu_samples));
    }
    void compare(const Totals& totals) const {
        alloc.compare(totals.alloc_bytes);
        count.compare(totals.alloc_count);
        freed.compare(totals.freed_bytes);
        live.compare(totals.live_bytes);
        peak.compare(totals.peak_bytes);
        samples.compare(static_cast<double>(totals.cpu_samples));
    }
    Sum alloc, count, freed, live, peak, samples;
};

void check_files(const Profile& profile) {
    FigureSums all("files");
    double cpu_pct = 0;
    bool any_cpu = false;
    for (const FileRow& file : profile.files) {
        check_figures(file.figures, file.path);
        FigureSums lines("the lines of " + file.path);
        for (const LineRow& line : file.lines) {
            check_figures(line.figures, fmt::format("{}:{}", file.path, line.line));
            lines.add(line.figures);
            any_cpu = any_cpu || line.figures.cpu_pct;
            cpu_pct += line.figures.cpu_pct.value_or(0);
        }
        const Figures& f = file.figures;
        Totals whole;
        whole.alloc_bytes = f.alloc_bytes;
        whole.alloc_count = f.alloc_count;
        whole.freed_bytes = f.freed_bytes;
        whole.live_bytes = f.live_bytes;
        whole.peak_bytes = f.peak_bytes;
        whole.cpu_samples = f.cpu_samples.value_or(0);
        lines.compare(whole);
        all.add(f);
    }
    if (!profile.files.empty()) all.compare(profile.totals);
    if (any_cpu && profile.totals.cpu_samples > 0 && !same(cpu_pct, 100, 100)) {
        contradiction("the lines' CPU shares add up to {}", cpu_pct);
    }
}

void check_stacks(const Profile& profile) {
    FigureSums all("stacks");
    for (const StackRow& stack : profile.stacks) {
        for (const trace::Frame& frame : stack.frames) {
            if (static_cast<std::size_t>(frame.function) >= profile.function_table.size()) {
                contradiction("a stack names function {} of {}", static_cast<std::size_t>(frame.function),
                              profile.function_table.size());
            }
        }
        const std::uint64_t split = stack.python_samples + stack.native_samples + stack.system_samples;
        if (split > stack.cpu_samples || stack.gil_samples > stack.cpu_samples) {
            contradiction("a stack has more samples in its parts than in all");
        }
        Figures f;
        f.alloc_bytes = stack.alloc_bytes;
        f.alloc_count = stack.alloc_count;
        f.freed_bytes = stack.freed_bytes;
        f.live_bytes = stack.live_bytes;
        f.peak_bytes = stack.peak_bytes;
        f.temporary_bytes = stack.temporary_bytes;
        f.cpu_samples = stack.cpu_samples;
        check_figures(f, "a stack");
        all.add(f);
    }
    all.compare(profile.totals);
}

}  // namespace

void check(const Profile& profile) {
    check_files(profile);
    check_stacks(profile);
    for (const FunctionRow& row : profile.functions) check_figures(row.figures, row.name);
    if (!profile.threads.empty()) {
        FigureSums threads("threads");
        for (const ThreadRow& row : profile.threads) {
            check_figures(row.figures, fmt::format("thread {}", row.tid));
            threads.add(row.figures);
        }
        threads.compare(profile.totals);
    }
    double before = -1;
    for (const TimelinePoint& point : profile.timeline) {
        if (!std::isfinite(point.t_s) || point.t_s < before) contradiction("the timeline runs backwards");
        before = point.t_s;
    }
    for (const Leak& leak : profile.leaks) {
        if (!(leak.confidence >= 0 && leak.confidence <= 1)) {
            contradiction("leak suspect {}:{} has confidence {}", leak.path, leak.line, leak.confidence);
        }
    }
}

}  // namespace memattach::profile
