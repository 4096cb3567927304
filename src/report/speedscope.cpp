#include "memattach/report/speedscope.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "memattach/base/text.h"
#include "memattach/report/metric.h"

namespace memattach::report {
namespace {

using Json = nlohmann::ordered_json;

class FrameList {
  public:
    explicit FrameList(const profile::Profile& profile) : profile_(profile) {}

    std::size_t index_of(const trace::Frame& frame) {
        const auto [it, added] = ids_.try_emplace(frame, frames_.size());
        if (added) {
            const trace::Function& f = profile_.function_table.at(static_cast<std::size_t>(frame.function));
            Json json = {{"name", base::valid_utf8(f.name)}};
            if (!f.file.empty()) json["file"] = base::valid_utf8(f.file);
            if (frame.line > 0) json["line"] = frame.line;
            frames_.push_back(std::move(json));
        }
        return it->second;
    }
    std::size_t no_stack() {
        if (!no_stack_) {
            no_stack_ = frames_.size();
            frames_.push_back({{"name", profile::kNoStack}});
        }
        return *no_stack_;
    }
    Json take() { return std::move(frames_); }

  private:
    const profile::Profile& profile_;
    std::map<trace::Frame, std::size_t> ids_;
    std::optional<std::size_t> no_stack_;
    Json frames_ = Json::array();
};

struct Sampled {
    Json samples = Json::array();
    Json weights = Json::array();
    double total = 0;
};

std::string thread_title(const profile::Profile& profile, std::pair<int, int> id, bool several_processes) {
    std::string title = several_processes ? fmt::format(", process {}", id.first) : "";
    if (id.second == 0) return title;
    for (const profile::ThreadRow& thread : profile.threads) {
        if (thread.pid == id.first && thread.tid == id.second && !thread.name.empty()) {
            return title + fmt::format(", thread {} ({})", id.second, base::valid_utf8(thread.name));
        }
    }
    return title + fmt::format(", thread {}", id.second);
}

}  // namespace

std::string to_speedscope(const profile::Profile& profile) {
    FrameList frames(profile);
    Json profiles = Json::array();
    for (const Metric metric : metrics_of(profile)) {
        const bool of_time = metric == Metric::cpu_samples || metric == Metric::wait_samples;
        const double rate = profile.session.rate_hz;
        const bool in_seconds = of_time && rate > 0;
        std::map<std::pair<int, int>, Sampled> by_thread;
        bool several_processes = false;
        for (const profile::StackRow& stack : profile.stacks) {
            several_processes = several_processes || stack.pid != profile.stacks.front().pid;
            const double weight = weight_of(stack, metric) / (in_seconds ? rate : 1);
            if (!(weight > 0)) continue;
            Json sample = Json::array();
            for (std::size_t i = stack.frames.size(); i-- > 0;) {
                sample.push_back(frames.index_of(stack.frames[i]));
            }
            if (sample.empty()) sample.push_back(frames.no_stack());
            Sampled& sampled = by_thread[{stack.pid, stack.tid}];
            sampled.samples.push_back(std::move(sample));
            sampled.weights.push_back(weight);
            sampled.total += weight;
        }
        for (auto& [id, sampled] : by_thread) {
            profiles.push_back(
                {{"type", "sampled"},
                 {"name", std::string(name_of(metric)) + thread_title(profile, id, several_processes)},
                 {"unit", in_seconds ? "seconds"
                          : of_time  ? "none"
                                     : "bytes"},
                 {"startValue", 0},
                 {"endValue", sampled.total},
                 {"samples", std::move(sampled.samples)},
                 {"weights", std::move(sampled.weights)}});
        }
    }
    Json root;
    root["$schema"] = "https://www.speedscope.app/file-format-schema.json";
    root["exporter"] = "memattach";
    root["name"] = base::valid_utf8(profile.target.command);
    if (!profiles.empty()) root["activeProfileIndex"] = 0;
    root["shared"] = {{"frames", frames.take()}};
    root["profiles"] = std::move(profiles);
    return root.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace memattach::report
