#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "memattach/base/text.h"
#include "memattach/profile/figures.h"
#include "memattach/report/json.h"

namespace memattach::report {
namespace {

using Json = nlohmann::ordered_json;

Json text(const std::string& value) {
    return base::valid_utf8(value);
}

Json text_or_null(const std::string& value) {
    return value.empty() ? Json(nullptr) : text(value);
}

template <typename T>
Json maybe(const std::optional<T>& value) {
    return value ? Json(*value) : Json(nullptr);
}

void add_figures(Json& object, const profile::Figures& figures) {
    profile::visit_figures(figures,
                           [&](const char* name, const auto& value) { object[name] = maybe(value); });
}

Json target_json(const profile::Target& target) {
    return {{"pid", target.pid},
            {"command", text(target.command)},
            {"python", text(target.python)},
            {"exe", text(target.exe)}};
}

Json session_json(const profile::Session& session) {
    Json loss = Json::object();
    for (std::size_t i = 0; i < session.loss.counts.size(); ++i) {
        loss[std::string(trace::name_of(static_cast<trace::Loss>(i)))] = session.loss.counts[i];
    }
    Json notes = Json::array();
    for (const std::string& note : session.notes) notes.push_back(text(note));
    return {{"started", text(session.started)},
            {"duration_s", session.duration_s},
            {"engine",
             {{"cpu", text_or_null(session.engine_cpu)},
              {"alloc", text_or_null(session.engine_alloc)},
              {"resident", text_or_null(session.engine_resident)}}},
            {"rate_hz", session.rate_hz},
            {"threshold_bytes", session.threshold_bytes},
            {"coverage",
             {{"malloc", maybe(session.coverage_malloc)}, {"object", maybe(session.coverage_object)}}},
            {"overhead_pct", maybe(session.overhead_pct)},
            {"stopped_s", session.stopped_s},
            {"longest_stop_us", session.longest_stop_us},
            {"text_verified", maybe(session.text_verified)},
            {"target_exited", session.target_exited},
            {"loss", std::move(loss)},
            {"notes", std::move(notes)}};
}

Json totals_json(const profile::Totals& totals) {
    return {{"alloc_bytes", maybe(totals.alloc_bytes)},
            {"alloc_ci95", maybe(totals.alloc_ci95)},
            {"alloc_count", maybe(totals.alloc_count)},
            {"freed_bytes", maybe(totals.freed_bytes)},
            {"live_bytes", maybe(totals.live_bytes)},
            {"peak_bytes", maybe(totals.peak_bytes)},
            {"rss_start_bytes", maybe(totals.rss_start_bytes)},
            {"rss_end_bytes", maybe(totals.rss_end_bytes)},
            {"rss_peak_bytes", maybe(totals.rss_peak_bytes)},
            {"before_attach_bytes", maybe(totals.before_attach_bytes)},
            {"unknown_frees", maybe(totals.unknown_frees)},
            {"cpu_s", totals.cpu_s},
            {"cpu_samples", totals.cpu_samples}};
}

Json files_json(const profile::Profile& profile) {
    Json files = Json::array();
    for (const profile::FileRow& file : profile.files) {
        Json lines = Json::array();
        for (const profile::LineRow& line : file.lines) {
            Json row = {{"line", line.line}, {"function", text(line.function)}, {"code", text(line.code)}};
            add_figures(row, line.figures);
            lines.push_back(std::move(row));
        }
        Json row = {{"path", text(file.path)}, {"user_code", file.user_code}};
        add_figures(row, file.figures);
        row["lines"] = std::move(lines);
        files.push_back(std::move(row));
    }
    return files;
}

Json functions_json(const profile::Profile& profile) {
    Json functions = Json::array();
    for (const profile::FunctionRow& function : profile.functions) {
        Json row = {{"name", text(function.name)},
                    {"path", text(function.path)},
                    {"first_line", function.first_line}};
        add_figures(row, function.figures);
        functions.push_back(std::move(row));
    }
    return functions;
}

Json threads_json(const profile::Profile& profile) {
    Json threads = Json::array();
    for (const profile::ThreadRow& thread : profile.threads) {
        Json row = {{"pid", thread.pid}, {"tid", thread.tid}, {"name", text(thread.name)}};
        add_figures(row, thread.figures);
        threads.push_back(std::move(row));
    }
    return threads;
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

Json function_table_json(const profile::Profile& profile) {
    Json table = Json::array();
    for (const trace::Function& function : profile.function_table) {
        table.push_back({{"name", text(function.name)},
                         {"file", text(function.file)},
                         {"first_line", function.first_line},
                         {"kind", kind_name(function.kind)}});
    }
    return table;
}

/// Stacks share the frames that they have in common on the outside.
class FrameTree {
  public:
    Json add(const trace::Stack& stack) {
        constexpr std::int64_t kNone = -1;
        std::int64_t outer = kNone;
        for (std::size_t i = stack.size(); i-- > 0;) {
            const Key key{outer, stack[i]};
            const auto [it, added] = ids_.try_emplace(key, static_cast<std::int64_t>(frames_.size()));
            if (added) {
                frames_.push_back({static_cast<std::uint32_t>(stack[i].function), stack[i].line,
                                   outer == kNone ? Json(nullptr) : Json(outer)});
            }
            outer = it->second;
        }
        return outer == kNone ? Json(nullptr) : Json(outer);
    }
    Json take() { return std::move(frames_); }

  private:
    struct Key {
        std::int64_t outer;
        trace::Frame frame;
        bool operator==(const Key&) const = default;
    };
    struct Hash {
        std::size_t operator()(const Key& key) const {
            std::uint64_t hash = static_cast<std::uint64_t>(key.outer) * 0x9E3779B97F4A7C15ULL;
            hash ^= (static_cast<std::uint64_t>(key.frame.function) << 32) | key.frame.line;
            hash *= 0x9E3779B97F4A7C15ULL;
            return hash ^ (hash >> 32);
        }
    };
    std::unordered_map<Key, std::int64_t, Hash> ids_;
    Json frames_ = Json::array();
};

Json stacks_json(const profile::Profile& profile, FrameTree& frames) {
    Json stacks = Json::array();
    for (const profile::StackRow& stack : profile.stacks) {
        stacks.push_back({{"frame", frames.add(stack.frames)},
                          {"pid", stack.pid},
                          {"tid", stack.tid == 0 ? Json(nullptr) : Json(stack.tid)},
                          {"cpu_samples", stack.cpu_samples},
                          {"python_samples", stack.python_samples},
                          {"native_samples", stack.native_samples},
                          {"system_samples", stack.system_samples},
                          {"gil_samples", stack.gil_samples},
                          {"wait_samples", stack.wait_samples},
                          {"alloc_bytes", maybe(stack.alloc_bytes)},
                          {"alloc_variance", maybe(stack.alloc_variance)},
                          {"alloc_count", maybe(stack.alloc_count)},
                          {"freed_bytes", maybe(stack.freed_bytes)},
                          {"live_bytes", maybe(stack.live_bytes)},
                          {"peak_bytes", maybe(stack.peak_bytes)},
                          {"temporary_bytes", maybe(stack.temporary_bytes)}});
    }
    return stacks;
}

Json timeline_json(const profile::Profile& profile) {
    Json t = Json::array();
    Json rss = Json::array();
    Json live = Json::array();
    Json cpu = Json::array();
    for (const profile::TimelinePoint& point : profile.timeline) {
        t.push_back(std::round(point.t_s * 1e3) / 1e3);
        rss.push_back(maybe(point.rss_bytes));
        live.push_back(point.live_bytes ? Json(std::round(*point.live_bytes)) : Json(nullptr));
        cpu.push_back(point.cpu_pct ? Json(std::round(*point.cpu_pct * 10) / 10) : Json(nullptr));
    }
    return {{"t_s", std::move(t)},
            {"rss_bytes", std::move(rss)},
            {"live_bytes", std::move(live)},
            {"cpu_pct", std::move(cpu)}};
}

Json sources_json(const profile::Profile& profile) {
    Json sources = Json::array();
    for (const profile::SourceExcerpt& source : profile.sources) {
        Json lines = Json::array();
        for (const auto& [number, line] : source.lines) lines.push_back({number, text(line)});
        sources.push_back({{"path", text(source.path)}, {"lines", std::move(lines)}});
    }
    return sources;
}

Json hotspots_json(const profile::Profile& profile) {
    Json hotspots = Json::array();
    for (const profile::Hotspot& hotspot : profile.hotspots) {
        hotspots.push_back({{"path", text(hotspot.path)},
                            {"line", hotspot.line},
                            {"function", text(hotspot.function)},
                            {"code", text(hotspot.code)},
                            {"metric", text(hotspot.metric)},
                            {"share_pct", hotspot.share_pct},
                            {"advice", text_or_null(hotspot.advice)}});
    }
    return hotspots;
}

Json leaks_json(const profile::Profile& profile) {
    Json leaks = Json::array();
    for (const profile::Leak& leak : profile.leaks) {
        leaks.push_back({{"path", text(leak.path)},
                         {"line", leak.line},
                         {"function", text(leak.function)},
                         {"code", text(leak.code)},
                         {"growth_bytes_per_min", leak.growth_bytes_per_min},
                         {"growth_ci95", leak.growth_ci95},
                         {"live_bytes", leak.live_bytes},
                         {"confidence", leak.confidence},
                         {"evidence", text(leak.evidence)},
                         {"seconds_to_limit", maybe(leak.seconds_to_limit)}});
    }
    return leaks;
}

}  // namespace

std::string to_json(const profile::Profile& profile) {
    FrameTree frames;
    Json stacks = stacks_json(profile, frames);
    Json root;
    root["schema"] = kSchema;
    root["target"] = target_json(profile.target);
    root["session"] = session_json(profile.session);
    root["totals"] = totals_json(profile.totals);
    root["hotspots"] = hotspots_json(profile);
    root["leaks"] = leaks_json(profile);
    root["files"] = files_json(profile);
    root["functions"] = functions_json(profile);
    root["threads"] = threads_json(profile);
    root["timeline"] = timeline_json(profile);
    root["sources"] = sources_json(profile);
    root["function_table"] = function_table_json(profile);
    root["frame_table"] = frames.take();
    root["stacks"] = std::move(stacks);
    return root.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace memattach::report
