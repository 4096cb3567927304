#include <cmath>
#include <unordered_map>

#include "memattach/profile/figures.h"
#include "memattach/report/json.h"
#include "memattach/report/json_writer.h"

namespace memattach::report {
namespace {

std::optional<std::string> text_or_null(const std::string& text) {
    return text.empty() ? std::nullopt : std::optional(text);
}

std::optional<double> rounded(const std::optional<double>& value, double unit) {
    return value ? std::optional(std::round(*value / unit) * unit) : std::nullopt;
}

void write_figures(JsonWriter& w, const profile::Figures& figures) {
    profile::visit_figures(figures, [&](const char* name, const auto& value) { w.member(name, value); });
}

void write_target(JsonWriter& w, const profile::Target& target) {
    w.key("target").open_object();
    w.member("pid", target.pid).member("command", target.command);
    w.member("python", target.python).member("exe", target.exe);
    w.close_object();
}

void write_session(JsonWriter& w, const profile::Session& session) {
    w.key("session").open_object();
    w.member("started", session.started).member("duration_s", session.duration_s);
    w.key("engine").open_object();
    w.member("cpu", text_or_null(session.engine_cpu));
    w.member("alloc", text_or_null(session.engine_alloc));
    w.member("resident", text_or_null(session.engine_resident));
    w.close_object();
    w.member("rate_hz", session.rate_hz).member("threshold_bytes", session.threshold_bytes);
    w.key("coverage").open_object();
    w.member("malloc", session.coverage_malloc).member("object", session.coverage_object);
    w.member("large", session.coverage_large).member("large_from_bytes", session.large_from_bytes);
    w.close_object();
    w.member("overhead_pct", session.overhead_pct).member("stopped_s", session.stopped_s);
    w.member("longest_stop_us", session.longest_stop_us).member("text_verified", session.text_verified);
    w.member("target_exited", session.target_exited);
    w.key("loss").open_object();
    for (std::size_t i = 0; i < session.loss.counts.size(); ++i) {
        w.member(trace::name_of(static_cast<trace::Loss>(i)), session.loss.counts[i]);
    }
    w.close_object();
    w.key("notes").open_array();
    for (const std::string& note : session.notes) w.value(note);
    w.close_array();
    w.close_object();
}

void write_totals(JsonWriter& w, const profile::Totals& totals) {
    w.key("totals").open_object();
    w.member("alloc_bytes", totals.alloc_bytes).member("alloc_ci95", totals.alloc_ci95);
    w.member("alloc_count", totals.alloc_count).member("alloc_count_ci95", totals.alloc_count_ci95);
    w.member("freed_bytes", totals.freed_bytes).member("freed_ci95", totals.freed_ci95);
    w.member("live_bytes", totals.live_bytes).member("live_ci95", totals.live_ci95);
    w.member("live_uncharged_bytes", totals.live_uncharged_bytes);
    w.member("peak_bytes", totals.peak_bytes).member("peak_ci95", totals.peak_ci95);
    w.member("rss_start_bytes", totals.rss_start_bytes).member("rss_end_bytes", totals.rss_end_bytes);
    w.member("rss_peak_bytes", totals.rss_peak_bytes);
    w.member("before_attach_bytes", totals.before_attach_bytes);
    w.member("unknown_frees", totals.unknown_frees);
    w.member("cpu_s", totals.cpu_s).member("cpu_samples", totals.cpu_samples);
    w.close_object();
}

void write_rows(JsonWriter& w, const profile::Profile& profile) {
    w.key("files").open_array();
    for (const profile::FileRow& file : profile.files) {
        w.open_object().member("path", file.path).member("user_code", file.user_code);
        write_figures(w, file.figures);
        w.key("lines").open_array();
        for (const profile::LineRow& line : file.lines) {
            w.open_object().member("line", line.line).member("function", line.function);
            w.member("code", line.code);
            write_figures(w, line.figures);
            w.close_object();
        }
        w.close_array().close_object();
    }
    w.close_array();
    w.key("functions").open_array();
    for (const profile::FunctionRow& function : profile.functions) {
        w.open_object().member("name", function.name).member("path", function.path);
        w.member("first_line", function.first_line);
        write_figures(w, function.figures);
        w.close_object();
    }
    w.close_array();
    w.key("threads").open_array();
    for (const profile::ThreadRow& thread : profile.threads) {
        w.open_object().member("pid", thread.pid).member("tid", thread.tid).member("name", thread.name);
        write_figures(w, thread.figures);
        w.close_object();
    }
    w.close_array();
}

void write_findings(JsonWriter& w, const profile::Profile& profile) {
    w.key("hotspots").open_array();
    for (const profile::Hotspot& hotspot : profile.hotspots) {
        w.open_object().member("path", hotspot.path).member("line", hotspot.line);
        w.member("function", hotspot.function).member("code", hotspot.code);
        w.member("metric", hotspot.metric).member("share_pct", hotspot.share_pct);
        w.member("advice", text_or_null(hotspot.advice));
        w.close_object();
    }
    w.close_array();
    w.key("leaks").open_array();
    for (const profile::Leak& leak : profile.leaks) {
        w.open_object().member("path", leak.path).member("line", leak.line);
        w.member("function", leak.function).member("code", leak.code);
        w.member("growth_bytes_per_min", leak.growth_bytes_per_min).member("growth_ci95", leak.growth_ci95);
        w.member("live_bytes", leak.live_bytes).member("confidence", leak.confidence);
        w.member("evidence", leak.evidence).member("seconds_to_limit", leak.seconds_to_limit);
        w.close_object();
    }
    w.close_array();
}

void write_timeline(JsonWriter& w, const profile::Profile& profile) {
    const auto column = [&](const char* name, auto value_of) {
        w.key(name).open_array();
        for (const profile::TimelinePoint& point : profile.timeline) w.value(value_of(point));
        w.close_array();
    };
    using Point = profile::TimelinePoint;
    w.key("timeline").open_object();
    column("t_s", [](const Point& p) { return std::round(p.t_s * 1e3) / 1e3; });
    column("rss_bytes", [](const Point& p) { return p.rss_bytes; });
    column("live_bytes", [](const Point& p) { return rounded(p.live_bytes, 1); });
    column("cpu_pct", [](const Point& p) { return rounded(p.cpu_pct, 0.125); });
    w.close_object();
}

void write_sources(JsonWriter& w, const profile::Profile& profile) {
    w.key("sources").open_array();
    for (const profile::SourceExcerpt& source : profile.sources) {
        w.open_object().member("path", source.path).key("lines").open_array();
        for (const auto& [number, line] : source.lines) {
            w.open_array().value(number).value(line).close_array();
        }
        w.close_array().close_object();
    }
    w.close_array();
}

const char* kind_name(trace::FunctionKind kind) {
    switch (kind) {
        case trace::FunctionKind::native:
            return "native";
        case trace::FunctionKind::kernel:
            return "kernel";
        case trace::FunctionKind::marker:
            return "marker";
        case trace::FunctionKind::python:
            break;
    }
    return "python";
}

/// Stacks share the frames that they have in common on the outside.
class FrameTree {
  public:
    using Index = std::optional<std::uint32_t>;
    struct Node {
        Index outer;
        trace::Frame frame;
        bool operator==(const Node&) const = default;
    };

    Index add(const trace::Stack& stack) {
        Index outer;
        for (std::size_t i = stack.size(); i-- > 0;) {
            const auto [it, added] =
                ids_.try_emplace(Node{outer, stack[i]}, static_cast<std::uint32_t>(nodes_.size()));
            if (added) nodes_.push_back(it->first);
            outer = it->second;
        }
        return outer;
    }
    [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }

  private:
    struct Hash {
        std::size_t operator()(const Node& node) const {
            std::uint64_t hash = (node.outer ? *node.outer + 1ULL : 0) * 0x9E3779B97F4A7C15ULL;
            hash ^= (static_cast<std::uint64_t>(node.frame.function) << 32) | node.frame.line;
            hash *= 0x9E3779B97F4A7C15ULL;
            return hash ^ (hash >> 32);
        }
    };
    std::unordered_map<Node, std::uint32_t, Hash> ids_;
    std::vector<Node> nodes_;
};

void write_stacks(JsonWriter& w, const profile::Profile& profile) {
    w.key("function_table").open_array();
    for (const trace::Function& function : profile.function_table) {
        w.open_object().member("name", function.name).member("file", function.file);
        w.member("first_line", function.first_line).member("kind", kind_name(function.kind));
        w.close_object();
    }
    w.close_array();
    FrameTree frames;
    w.key("stacks").open_array();
    for (const profile::StackRow& stack : profile.stacks) {
        w.open_object().member("frame", frames.add(stack.frames)).member("pid", stack.pid);
        w.member("tid", stack.tid == 0 ? std::nullopt : std::optional(stack.tid));
        w.member("cpu_samples", stack.cpu_samples).member("python_samples", stack.python_samples);
        w.member("native_samples", stack.native_samples).member("system_samples", stack.system_samples);
        w.member("gil_samples", stack.gil_samples).member("wait_samples", stack.wait_samples);
        w.member("alloc_bytes", stack.alloc_bytes).member("alloc_variance", stack.alloc_variance);
        w.member("alloc_count", stack.alloc_count).member("freed_bytes", stack.freed_bytes);
        w.member("live_bytes", stack.live_bytes).member("peak_bytes", stack.peak_bytes);
        w.member("temporary_bytes", stack.temporary_bytes);
        w.close_object();
    }
    w.close_array();
    w.key("frame_table").open_array();
    for (const FrameTree::Node& node : frames.nodes()) {
        w.open_array().value(static_cast<std::uint32_t>(node.frame.function)).value(node.frame.line);
        w.value(node.outer).close_array();
    }
    w.close_array();
}

}  // namespace

std::string to_json(const profile::Profile& profile) {
    JsonWriter w;
    w.open_object().member("schema", kSchema);
    write_target(w, profile.target);
    write_session(w, profile.session);
    write_totals(w, profile.totals);
    write_findings(w, profile);
    write_rows(w, profile);
    write_timeline(w, profile);
    write_sources(w, profile);
    write_stacks(w, profile);
    w.close_object();
    return w.take() + "\n";
}

}  // namespace memattach::report
