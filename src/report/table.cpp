#include "memattach/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "memattach/base/text.h"
#include "memattach/report/layout.h"

namespace memattach::report {
namespace {

using profile::Figures;

constexpr const char* kBold = "\x1b[1m";
constexpr const char* kDim = "\x1b[2m";
constexpr const char* kHot = "\x1b[31m";
constexpr const char* kWarm = "\x1b[33m";
constexpr const char* kPlain = "\x1b[0m";

/// From these shares on a figure is coloured.
constexpr double kHotPct = 20;
constexpr double kWarmPct = 5;

std::string percent_text(const std::optional<double>& pct) {
    return pct ? fmt::format("{:.1f} %", *pct) : "";
}

std::string megabytes_text(const std::optional<double>& bytes) {
    return bytes ? fmt::format("{:.1f}", *bytes / 1e6) : "";
}

/// A half width: as many digits as say something.
std::string half_width_text(const std::optional<double>& value, double unit) {
    if (!value) return "";
    const double v = *value / unit;
    if (v == 0) return "0";
    return v < 0.95 ? fmt::format("{:.1f}", std::max(v, 0.1)) : fmt::format("{:.0f}", v);
}

struct Column {
    std::string title;
    std::function<std::string(const Figures&)> text;
    /// What decides its colour; empty: none.
    std::function<double(const Figures&)> share;
    /// Columns with the highest number go first where the terminal is narrow.
    int expendable = 0;
};

std::vector<Column> columns_for(bool cpu, bool memory, double wait_period_s) {
    std::vector<Column> columns;
    if (memory) {
        columns.push_back({"Memory %", [](const Figures& f) { return percent_text(f.memory_pct); },
                           [](const Figures& f) { return f.memory_pct.value_or(0); }, 0});
        columns.push_back(
            {"Memory (MB)", [](const Figures& f) { return megabytes_text(f.alloc_bytes); }, {}, 0});
        columns.push_back({"±", [](const Figures& f) { return half_width_text(f.alloc_ci95, 1e6); }, {}, 1});
        columns.push_back(
            {"Live (MB)", [](const Figures& f) { return megabytes_text(f.live_bytes); }, {}, 2});
        columns.push_back({"±", [](const Figures& f) { return half_width_text(f.live_ci95, 1e6); }, {}, 3});
        columns.push_back(
            {"Peak (MB)", [](const Figures& f) { return megabytes_text(f.peak_bytes); }, {}, 3});
    }
    if (cpu) {
        columns.push_back({"CPU %", [](const Figures& f) { return percent_text(f.cpu_pct); },
                           [](const Figures& f) { return f.cpu_pct.value_or(0); }, memory ? 2 : 0});
        if (!memory) {
            columns.push_back({"±", [](const Figures& f) { return half_width_text(f.cpu_ci95, 1); }, {}, 1});
            columns.push_back(
                {"Total %", [](const Figures& f) { return percent_text(f.cpu_total_pct); }, {}, 2});
        }
        columns.push_back({"Python %", [](const Figures& f) { return percent_text(f.python_pct); }, {}, 4});
        if (wait_period_s > 0) {
            columns.push_back({"Wait (s)",
                               [wait_period_s](const Figures& f) {
                                   const auto samples = static_cast<double>(f.wait_samples.value_or(0));
                                   return fmt::format("{:.1f}", samples * wait_period_s);
                               },
                               {},
                               0});
        }
    }
    return columns;
}

/// A row of the table, whether it is a line or a function.
struct Row {
    std::string label;
    std::string code;
    const Figures* figures;
    double cost;
};

struct Group {
    std::string path;
    const Figures* figures = nullptr;  ///< of the file; nullptr where functions belong to none
    double memory_pct = 0, cpu_pct = 0;
    std::vector<Row> rows;
};

double cost_of(const Figures& f) {
    return f.memory_pct.value_or(0) + f.cpu_pct.value_or(0);
}

bool costs_anything(const Figures& f) {
    return f.cpu_samples.value_or(0) > 0 || f.wait_samples.value_or(0) > 0 || f.alloc_bytes.value_or(0) > 0;
}

/// Whether a row of these would show anything but zeros.
bool shows_anything(const Figures& f) {
    const auto shown = [](const std::optional<double>& value, double unit) {
        return value.value_or(0) >= 0.05 * unit;
    };
    return shown(f.memory_pct, 1) || shown(f.live_bytes, 1e6) || shown(f.peak_bytes, 1e6) ||
           shown(f.cpu_pct, 1) || f.wait_samples.value_or(0) > 0;
}

class Table {
  public:
    Table(const profile::Profile& profile, const TableOptions& options)
        : profile_(profile),
          options_(options),
          cpu_(!profile.session.engine_cpu.empty() || profile.totals.cpu_samples > 0),
          memory_(!profile.session.engine_alloc.empty() || profile.totals.alloc_bytes.has_value()) {}

    std::string render() {
        collect();
        if (groups_.empty()) {
            out_ += cpu_ && !memory_ ? "No sample was taken on CPU: the target was idle.\n"
                                     : "Nothing was sampled.\n";
        } else {
            choose_columns();
            for (const Group& group : groups_) write_group(group);
            write_left_out();
        }
        write_threads();
        write_hotspots();
        write_leaks();
        out_ += "\n" + measurement_text(profile_);
        return std::move(out_);
    }

  private:
    std::string colored(const char* color, const std::string& text) const {
        return options_.color ? color + text + kPlain : text;
    }

    void collect() {
        std::vector<Row> rows;
        std::vector<std::size_t> group_of;
        const auto group_at = [&](const std::string& path) {
            const auto found = std::find_if(groups_.begin(), groups_.end(),
                                            [&](const Group& group) { return group.path == path; });
            if (found != groups_.end()) return static_cast<std::size_t>(found - groups_.begin());
            groups_.push_back({path, nullptr, 0, 0, {}});
            return groups_.size() - 1;
        };
        for (const profile::FileRow& file : profile_.files) {
            if (!costs_anything(file.figures)) continue;
            const std::size_t group = group_at(file.path);
            groups_[group].figures = &file.figures;
            groups_[group].memory_pct = file.figures.memory_pct.value_or(0);
            groups_[group].cpu_pct = file.figures.cpu_pct.value_or(0);
            for (const profile::LineRow& line : file.lines) {
                if (options_.functions || !costs_anything(line.figures)) continue;
                std::string label = line.line == 0 ? "-" : std::to_string(line.line);
                std::string code = line.code.empty() ? line.function : line.code;
                code.erase(0, code.find_first_not_of(" \t"));
                rows.push_back(
                    {std::move(label), base::printable(code, 400), &line.figures, cost_of(line.figures)});
                group_of.push_back(group);
            }
        }
        if (options_.functions) {
            for (const profile::FunctionRow& function : profile_.functions) {
                if (!costs_anything(function.figures)) continue;
                rows.push_back(
                    {base::printable(function.name, 200), "", &function.figures, cost_of(function.figures)});
                group_of.push_back(group_at(function.path.empty() ? function.name : function.path));
            }
        }
        std::vector<std::size_t> order(rows.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            const auto waits = [&](std::size_t i) { return rows[i].figures->wait_samples.value_or(0); };
            return std::pair(rows[a].cost, waits(a)) > std::pair(rows[b].cost, waits(b));
        });
        for (std::size_t i = 0; i < order.size(); ++i) {
            const Row& row = rows[order[i]];
            if (i < options_.max_rows && (i == 0 || shows_anything(*row.figures))) {
                groups_[group_of[order[i]]].rows.push_back(row);
            } else {
                ++left_out_;
                left_out_memory_ += row.figures->memory_pct.value_or(0);
                left_out_cpu_ += row.figures->cpu_pct.value_or(0);
            }
        }
        std::erase_if(groups_, [](const Group& group) { return group.rows.empty(); });
    }

    void choose_columns() {
        const bool waits = std::any_of(profile_.files.begin(), profile_.files.end(), [](const auto& file) {
            return file.figures.wait_samples.value_or(0) > 0;
        });
        const double rate_hz = profile_.session.rate_hz;
        wait_period_s_ = waits && rate_hz > 0 ? 1 / rate_hz : 0;
        columns_ = columns_for(cpu_, memory_, wait_period_s_);
        label_width_ = options_.functions ? 8 : 4;
        for (const Group& group : groups_) {
            for (const Row& row : group.rows) label_width_ = std::max(label_width_, columns_of(row.label));
        }
        if (options_.functions) label_width_ = std::min<std::size_t>(label_width_, 40);
        constexpr std::size_t kLeastCode = 20;
        while (options_.width > 0 && columns_.size() > 1) {
            measure();
            std::size_t used = label_width_ + 2;
            for (const std::size_t width : widths_) used += width + 3;
            if (used + (options_.functions ? 0 : kLeastCode) <= options_.width) break;
            const auto worst = std::max_element(
                columns_.begin(), columns_.end(),
                [](const Column& a, const Column& b) { return a.expendable < b.expendable; });
            if (worst->expendable == 0) break;
            columns_.erase(worst);
        }
        measure();
    }

    void measure() {
        widths_.clear();
        for (const Column& column : columns_) {
            std::size_t width = columns_of(column.title);
            for (const Group& group : groups_) {
                for (const Row& row : group.rows)
                    width = std::max(width, columns_of(column.text(*row.figures)));
            }
            widths_.push_back(width);
        }
    }

    [[nodiscard]] std::size_t line_width() const { return options_.width > 0 ? options_.width : 100; }

    void write_group(const Group& group) {
        std::string share;
        if (memory_ && group.memory_pct > 0) {
            share = fmt::format("{:.1f} % of allocated memory", group.memory_pct);
        }
        if (cpu_ && group.cpu_pct > 0 && (!memory_ || group.memory_pct == 0)) {
            share = fmt::format("{:.1f} % of CPU time", group.cpu_pct);
        }
        if (share.empty() && wait_period_s_ > 0 && group.figures != nullptr) {
            const auto samples = static_cast<double>(group.figures->wait_samples.value_or(0));
            share = fmt::format("{:.1f} s waited", samples * wait_period_s_);
        }
        const std::size_t width = std::min<std::size_t>(line_width(), 100);
        const std::size_t room = width > columns_of(share) + 2 ? width - columns_of(share) - 2 : 20;
        const std::string path = cut_left(base::printable(group.path, 1000), room);
        if (!first_group_) out_ += "\n";
        first_group_ = false;
        out_ += colored(kBold, pad_right(path, room)) + "  " + share + "\n";

        std::string header =
            " " + (options_.functions ? pad_right("Function", label_width_) : pad_left("Line", label_width_));
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            header += " | " + pad_left(columns_[i].title, widths_[i]);
        }
        if (!options_.functions) header += " | Code";
        out_ += colored(kDim, header) + "\n";
        for (const Row& row : group.rows) write_row(row);
    }

    void write_row(const Row& row) {
        out_ += " " + (options_.functions ? pad_right(cut_left(row.label, label_width_), label_width_)
                                          : pad_left(row.label, label_width_));
        std::size_t used = 1 + label_width_;
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            const std::string cell = pad_left(columns_[i].text(*row.figures), widths_[i]);
            const double share = columns_[i].share ? columns_[i].share(*row.figures) : 0;
            out_ += " | ";
            out_ += share >= kHotPct ? colored(kHot, cell) : share >= kWarmPct ? colored(kWarm, cell) : cell;
            used += 3 + widths_[i];
        }
        if (!options_.functions) {
            out_ += " | ";
            used += 3;
            out_ += options_.width > used ? cut_right(row.code, options_.width - used)
                    : options_.width == 0 ? row.code
                                          : "";
        }
        out_ += "\n";
    }

    void write_left_out() {
        if (left_out_ == 0) return;
        const std::string noun =
            std::string(options_.functions ? "function" : "line") + (left_out_ == 1 ? "" : "s");
        std::string shares;
        if (memory_) shares = fmt::format("{:.1f} % of allocated memory", left_out_memory_);
        if (cpu_)
            shares += fmt::format("{}{:.1f} % of CPU time", shares.empty() ? "" : " and ", left_out_cpu_);
        out_ +=
            colored(kDim, fmt::format("\n… and {} more {} with {}\n", count_text(left_out_), noun, shares));
    }

    /// With --threads. Each thread's shares, named as the kernel has it.
    void write_threads() {
        if (profile_.threads.empty()) return;
        constexpr std::size_t kMost = 20;
        const bool several = std::any_of(
            profile_.threads.begin(), profile_.threads.end(),
            [&](const profile::ThreadRow& row) { return row.pid != profile_.threads.front().pid; });
        std::vector<const profile::ThreadRow*> rows;
        for (const profile::ThreadRow& row : profile_.threads)
            if (rows.size() < kMost && costs_anything(row.figures)) rows.push_back(&row);
        if (rows.empty()) return;
        out_ += "\n" + colored(kBold, "Threads") + "\n";
        for (const profile::ThreadRow* row : rows) {
            std::string text;
            const auto add_share = [&](const std::optional<double>& pct, const char* of) {
                text += fmt::format("  {} of {}", pad_left(percent_text(pct.value_or(0)), 7), of);
            };
            if (memory_) add_share(row->figures.memory_pct, "allocated memory");
            if (cpu_) add_share(row->figures.cpu_pct, "CPU time");
            text += fmt::format("  {} \"{}\"", row->tid, base::printable(row->name, 100));
            if (several) text += fmt::format(" of process {}", row->pid);
            out_ += (options_.width > 0 ? cut_right(text, options_.width) : text) + "\n";
        }
        if (profile_.threads.size() > rows.size())
            out_ += colored(
                kDim, fmt::format("  … and {} more\n", count_text(profile_.threads.size() - rows.size())));
    }

    static std::string place(const std::string& path, std::uint32_t line) {
        return line == 0 ? path : fmt::format("{}:{}", path, line);
    }

    void write_hotspots() {
        if (profile_.hotspots.empty()) return;
        constexpr std::size_t kMost = 5;
        out_ += "\n" + colored(kBold, "Hotspots") + "\n";
        for (std::size_t i = 0; i < std::min(kMost, profile_.hotspots.size()); ++i) {
            const profile::Hotspot& hotspot = profile_.hotspots[i];
            const std::string share =
                fmt::format("{:5.1f} % of {}", hotspot.share_pct,
                            hotspot.metric == "memory" ? "allocated memory" : "CPU time");
            const std::string text =
                fmt::format("{}  in {}", cut_left(base::printable(place(hotspot.path, hotspot.line)), 60),
                            base::printable(hotspot.function, 100));
            out_ += fmt::format(
                "  {}. {}  {}\n", i + 1, pad_right(share, memory_ ? 27 : 19),
                options_.width > 40 ? cut_right(text, options_.width - (memory_ ? 34 : 26)) : text);
            if (!hotspot.advice.empty()) out_ += "     " + base::printable(hotspot.advice, 500) + "\n";
        }
    }

    void write_leaks() {
        if (profile_.leaks.empty()) return;
        constexpr std::size_t kMost = 5;
        out_ += "\n" + colored(kBold, "Leak suspects") + "\n";
        for (std::size_t i = 0; i < std::min(kMost, profile_.leaks.size()); ++i) {
            const profile::Leak& leak = profile_.leaks[i];
            out_ += fmt::format("  {}. {}  in {}\n", i + 1,
                                colored(kBold, cut_left(base::printable(place(leak.path, leak.line)), 60)),
                                base::printable(leak.function, 100));
            std::string text =
                fmt::format("     grows {} a minute (± {}), {} live, confidence {:.0f} %",
                            bytes_text(leak.growth_bytes_per_min), bytes_text(leak.growth_ci95),
                            bytes_text(leak.live_bytes), std::floor(100 * leak.confidence));
            if (leak.seconds_to_limit) {
                text += fmt::format(", memory limit in {}", duration_text(*leak.seconds_to_limit));
            }
            out_ += text + "\n";
            if (!leak.evidence.empty()) out_ += "     " + base::printable(leak.evidence, 500) + "\n";
            if (!leak.code.empty()) {
                std::string code = leak.code;
                code.erase(0, code.find_first_not_of(" \t"));
                out_ += colored(kDim, "     " + cut_right(base::printable(code), 95)) + "\n";
            }
        }
    }

    const profile::Profile& profile_;
    const TableOptions& options_;
    bool cpu_, memory_;
    std::vector<Group> groups_;
    std::vector<Column> columns_;
    std::vector<std::size_t> widths_;
    std::size_t label_width_ = 4;
    double wait_period_s_ = 0;  ///< what a sample of a waiting thread stands for; 0: there are none
    std::size_t left_out_ = 0;
    double left_out_memory_ = 0, left_out_cpu_ = 0;
    bool first_group_ = true;
    std::string out_;
};

}  // namespace

std::string to_table(const profile::Profile& profile, const TableOptions& options) {
    return Table(profile, options).render();
}

}  // namespace memattach::report
