#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/profile/figures.h"
#include "memattach/report/json.h"

namespace memattach::report {
namespace {

using Json = nlohmann::json;

/// Past these a file is not a profile of ours but an attempt on our memory.
constexpr std::size_t kMostFrames = 30'000'000;  ///< of all stacks together

/// Wrong in the file; `at` says where.
[[noreturn]] void wrong(const std::string& at, const char* what) {
    throw std::runtime_error(at + " " + what);
}

const Json& member(const Json& object, const char* key, const std::string& at) {
    if (!object.is_object()) wrong(at, "is not an object");
    const auto found = object.find(key);
    if (found == object.end()) wrong(at + "." + key, "is missing");
    return *found;
}

/// A member that earlier or later writers may leave out: null then.
const Json& member_or_null(const Json& object, const char* key, const std::string& at) {
    static const Json kNull;
    if (!object.is_object()) wrong(at, "is not an object");
    const auto found = object.find(key);
    return found == object.end() ? kNull : *found;
}

const Json& array(const Json& object, const char* key, const std::string& at) {
    const Json& value = member(object, key, at);
    if (!value.is_array()) wrong(at + "." + key, "is not an array");
    return value;
}

template <typename T>
T number(const Json& value, const std::string& at) {
    if constexpr (std::is_same_v<T, bool>) {
        if (!value.is_boolean()) wrong(at, "is neither true nor false");
        return value.get<bool>();
    } else if constexpr (std::is_floating_point_v<T>) {
        if (!value.is_number()) wrong(at, "is not a number");
        const T result = value.get<T>();
        if (!std::isfinite(result)) wrong(at, "is not a finite number");
        return result;
    } else {
        if (!value.is_number_integer()) wrong(at, "is not a whole number");
        if (value.is_number_unsigned()) {
            const auto result = value.get<std::uint64_t>();
            if (result > static_cast<std::uint64_t>(std::numeric_limits<T>::max())) wrong(at, "is too large");
            return static_cast<T>(result);
        }
        const auto result = value.get<std::int64_t>();  // negative
        if (std::is_unsigned_v<T> || result < static_cast<std::int64_t>(std::numeric_limits<T>::min())) {
            wrong(at, "is too small");
        }
        return static_cast<T>(result);
    }
}

template <typename T>
void read(const Json& object, const char* key, const std::string& at, T& out) {
    out = number<T>(member(object, key, at), at + "." + key);
}

template <typename T>
void read(const Json& object, const char* key, const std::string& at, std::optional<T>& out) {
    const Json& value = member_or_null(object, key, at);
    if (!value.is_null()) out = number<T>(value, at + "." + key);
}

void read(const Json& object, const char* key, const std::string& at, std::string& out) {
    const Json& value = member(object, key, at);
    if (!value.is_string() && !value.is_null()) wrong(at + "." + key, "is not text");
    if (value.is_string()) out = value.get<std::string>();
}

void read_figures(const Json& object, const std::string& at, profile::Figures& figures) {
    profile::visit_figures(figures, [&](const char* name, auto& value) { read(object, name, at, value); });
}

void read_session(const Json& root, profile::Session& session) {
    const std::string at = "session";
    const Json& from = member(root, "session", "profile");
    read(from, "started", at, session.started);
    read(from, "duration_s", at, session.duration_s);
    const Json& engine = member(from, "engine", at);
    read(engine, "cpu", at + ".engine", session.engine_cpu);
    read(engine, "alloc", at + ".engine", session.engine_alloc);
    read(engine, "resident", at + ".engine", session.engine_resident);
    read(from, "rate_hz", at, session.rate_hz);
    read(from, "threshold_bytes", at, session.threshold_bytes);
    const Json& coverage = member(from, "coverage", at);
    read(coverage, "malloc", at + ".coverage", session.coverage_malloc);
    read(coverage, "object", at + ".coverage", session.coverage_object);
    read(coverage, "large", at + ".coverage", session.coverage_large);
    read(coverage, "large_from_bytes", at + ".coverage", session.large_from_bytes);
    read(from, "overhead_pct", at, session.overhead_pct);
    read(from, "stopped_s", at, session.stopped_s);
    read(from, "longest_stop_us", at, session.longest_stop_us);
    read(from, "text_verified", at, session.text_verified);
    read(from, "target_exited", at, session.target_exited);
    const Json& loss = member(from, "loss", at);
    for (std::size_t i = 0; i < session.loss.counts.size(); ++i) {
        std::optional<std::uint64_t> count;
        read(loss, std::string(trace::name_of(static_cast<trace::Loss>(i))).c_str(), at + ".loss", count);
        session.loss.counts[i] = count.value_or(0);
    }
    for (const Json& note : array(from, "notes", at)) {
        if (!note.is_string()) wrong(at + ".notes", "holds something that is not text");
        session.notes.push_back(note.get<std::string>());
    }
}

void read_totals(const Json& root, profile::Totals& totals) {
    const std::string at = "totals";
    const Json& from = member(root, "totals", "profile");
    read(from, "alloc_bytes", at, totals.alloc_bytes);
    read(from, "alloc_ci95", at, totals.alloc_ci95);
    read(from, "alloc_count", at, totals.alloc_count);
    read(from, "alloc_count_ci95", at, totals.alloc_count_ci95);
    read(from, "freed_bytes", at, totals.freed_bytes);
    read(from, "freed_ci95", at, totals.freed_ci95);
    read(from, "live_bytes", at, totals.live_bytes);
    read(from, "live_ci95", at, totals.live_ci95);
    read(from, "live_uncharged_bytes", at, totals.live_uncharged_bytes);
    read(from, "peak_bytes", at, totals.peak_bytes);
    read(from, "peak_ci95", at, totals.peak_ci95);
    read(from, "rss_start_bytes", at, totals.rss_start_bytes);
    read(from, "rss_end_bytes", at, totals.rss_end_bytes);
    read(from, "rss_peak_bytes", at, totals.rss_peak_bytes);
    read(from, "before_attach_bytes", at, totals.before_attach_bytes);
    read(from, "unknown_frees", at, totals.unknown_frees);
    read(from, "cpu_s", at, totals.cpu_s);
    read(from, "cpu_samples", at, totals.cpu_samples);
}

void read_rows(const Json& root, profile::Profile& profile) {
    for (const Json& from : array(root, "files", "profile")) {
        profile::FileRow file;
        read(from, "path", "files[]", file.path);
        read(from, "user_code", "files[]", file.user_code);
        read_figures(from, "files[]", file.figures);
        for (const Json& row : array(from, "lines", "files[]")) {
            const std::string at = "files[].lines[]";
            profile::LineRow line;
            read(row, "line", at, line.line);
            read(row, "function", at, line.function);
            read(row, "code", at, line.code);
            read_figures(row, at, line.figures);
            file.lines.push_back(std::move(line));
        }
        profile.files.push_back(std::move(file));
    }
    for (const Json& from : array(root, "functions", "profile")) {
        const std::string at = "functions[]";
        profile::FunctionRow row;
        read(from, "name", at, row.name);
        read(from, "path", at, row.path);
        read(from, "first_line", at, row.first_line);
        read_figures(from, at, row.figures);
        profile.functions.push_back(std::move(row));
    }
    for (const Json& from : array(root, "threads", "profile")) {
        const std::string at = "threads[]";
        profile::ThreadRow row;
        read(from, "pid", at, row.pid);
        read(from, "tid", at, row.tid);
        read(from, "name", at, row.name);
        read_figures(from, at, row.figures);
        profile.threads.push_back(std::move(row));
    }
}

void read_function_table(const Json& root, profile::Profile& profile) {
    const std::string at = "function_table[]";
    for (const Json& from : array(root, "function_table", "profile")) {
        trace::Function function;
        std::string kind;
        read(from, "name", at, function.name);
        read(from, "file", at, function.file);
        read(from, "first_line", at, function.first_line);
        read(from, "kind", at, kind);
        if (kind == "native") {
            function.kind = trace::FunctionKind::native;
        } else if (kind == "kernel") {
            function.kind = trace::FunctionKind::kernel;
        } else if (kind == "marker") {
            function.kind = trace::FunctionKind::marker;
        } else if (kind != "python") {
            wrong(at + ".kind", "is not a kind of function");
        }
        profile.function_table.push_back(std::move(function));
    }
}

void read_stacks(const Json& root, profile::Profile& profile) {
    struct Node {
        trace::Frame frame;
        std::optional<std::uint32_t> outer;
        std::size_t depth = 1;
    };
    std::vector<Node> nodes;
    for (const Json& from : array(root, "frame_table", "profile")) {
        const std::string at = "frame_table[]";
        if (!from.is_array() || from.size() != 3) wrong(at, "is not [function, line, outer]");
        Node node;
        node.frame.function = static_cast<trace::FunctionId>(number<std::uint32_t>(from[0], at));
        node.frame.line = number<std::uint32_t>(from[1], at);
        if (!from[2].is_null()) {
            node.outer = number<std::uint32_t>(from[2], at);
            if (*node.outer >= nodes.size()) wrong(at, "is called by a frame that comes later");
            node.depth = nodes[*node.outer].depth + 1;
        }
        if (static_cast<std::size_t>(node.frame.function) >= profile.function_table.size()) {
            wrong(at, "names a function that is not in function_table");
        }
        nodes.push_back(node);
    }
    std::size_t frames = 0;
    const std::string at = "stacks[]";
    for (const Json& from : array(root, "stacks", "profile")) {
        profile::StackRow row;
        std::optional<std::uint32_t> frame;
        std::optional<int> tid;
        read(from, "frame", at, frame);
        if (frame && *frame >= nodes.size()) wrong(at + ".frame", "is not in frame_table");
        if (frame) frames += nodes[*frame].depth;
        if (frames > kMostFrames) wrong("stacks", "are too many and too deep");
        for (; frame; frame = nodes[*frame].outer) row.frames.push_back(nodes[*frame].frame);
        read(from, "pid", at, row.pid);
        read(from, "tid", at, tid);
        row.tid = tid.value_or(0);
        read(from, "cpu_samples", at, row.cpu_samples);
        read(from, "python_samples", at, row.python_samples);
        read(from, "native_samples", at, row.native_samples);
        read(from, "system_samples", at, row.system_samples);
        read(from, "gil_samples", at, row.gil_samples);
        read(from, "wait_samples", at, row.wait_samples);
        read(from, "alloc_bytes", at, row.alloc_bytes);
        read(from, "alloc_variance", at, row.alloc_variance);
        read(from, "alloc_count", at, row.alloc_count);
        read(from, "freed_bytes", at, row.freed_bytes);
        read(from, "live_bytes", at, row.live_bytes);
        read(from, "peak_bytes", at, row.peak_bytes);
        read(from, "temporary_bytes", at, row.temporary_bytes);
        profile.stacks.push_back(std::move(row));
    }
}

void read_timeline(const Json& root, profile::Profile& profile) {
    const Json& from = member(root, "timeline", "profile");
    const Json& t = array(from, "t_s", "timeline");
    const auto column = [&](const char* key, std::size_t i) -> std::optional<double> {
        const Json& values = array(from, key, "timeline");
        if (values.size() != t.size())
            wrong(std::string("timeline.") + key, "is not as long as timeline.t_s");
        return values[i].is_null() ? std::nullopt
                                   : std::optional(number<double>(values[i], "timeline." + std::string(key)));
    };
    for (std::size_t i = 0; i < t.size(); ++i) {
        profile.timeline.push_back({number<double>(t[i], "timeline.t_s"), column("rss_bytes", i),
                                    column("live_bytes", i), column("cpu_pct", i)});
    }
}

void read_sources(const Json& root, profile::Profile& profile) {
    const std::string at = "sources[]";
    for (const Json& from : array(root, "sources", "profile")) {
        profile::SourceExcerpt source;
        read(from, "path", at, source.path);
        for (const Json& line : array(from, "lines", at)) {
            if (!line.is_array() || line.size() != 2 || !line[1].is_string()) {
                wrong(at + ".lines", "holds something that is not [number, text]");
            }
            source.lines.emplace_back(number<std::uint32_t>(line[0], at + ".lines"),
                                      line[1].get<std::string>());
        }
        profile.sources.push_back(std::move(source));
    }
}

void read_findings(const Json& root, profile::Profile& profile) {
    for (const Json& from : array(root, "hotspots", "profile")) {
        const std::string at = "hotspots[]";
        profile::Hotspot row;
        read(from, "path", at, row.path);
        read(from, "line", at, row.line);
        read(from, "function", at, row.function);
        read(from, "code", at, row.code);
        read(from, "metric", at, row.metric);
        read(from, "share_pct", at, row.share_pct);
        read(from, "advice", at, row.advice);
        profile.hotspots.push_back(std::move(row));
    }
    for (const Json& from : array(root, "leaks", "profile")) {
        const std::string at = "leaks[]";
        profile::Leak row;
        read(from, "path", at, row.path);
        read(from, "line", at, row.line);
        read(from, "function", at, row.function);
        read(from, "code", at, row.code);
        read(from, "growth_bytes_per_min", at, row.growth_bytes_per_min);
        read(from, "growth_ci95", at, row.growth_ci95);
        read(from, "live_bytes", at, row.live_bytes);
        read(from, "confidence", at, row.confidence);
        read(from, "evidence", at, row.evidence);
        read(from, "seconds_to_limit", at, row.seconds_to_limit);
        profile.leaks.push_back(std::move(row));
    }
}

profile::Profile read_root(const Json& root) {
    std::string schema;
    if (!root.is_object() || !root.contains("schema")) wrong("this", "is not a memattach profile");
    read(root, "schema", "profile", schema);
    if (schema != kSchema) {
        throw std::runtime_error("its schema is \"" + base::printable(schema, 60) + "\", not \"" +
                                 std::string(kSchema) + "\"");
    }
    profile::Profile profile;
    const Json& target = member(root, "target", "profile");
    read(target, "pid", "target", profile.target.pid);
    read(target, "command", "target", profile.target.command);
    read(target, "python", "target", profile.target.python);
    read(target, "exe", "target", profile.target.exe);
    read_session(root, profile.session);
    read_totals(root, profile.totals);
    read_rows(root, profile);
    read_function_table(root, profile);
    read_stacks(root, profile);
    read_timeline(root, profile);
    read_sources(root, profile);
    read_findings(root, profile);
    return profile;
}

}  // namespace

profile::Profile read_json(std::string_view text, const std::string& name) {
    const std::string shown = base::printable(name, 300);
    try {
        profile::Profile profile = read_root(Json::parse(text));
        profile::check(profile);
        return profile;
    } catch (const Json::exception& error) {
        base::throw_error("{}: not a memattach profile: {}", shown, base::printable(error.what(), 200));
    } catch (const std::runtime_error& error) {
        base::throw_error("{}: not a memattach profile: {}", shown, base::printable(error.what(), 300));
    } catch (const std::logic_error& error) {
        base::throw_error("{}: {}", shown, base::printable(error.what(), 300));
    }
}

}  // namespace memattach::report
