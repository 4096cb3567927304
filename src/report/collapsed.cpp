#include "memattach/report/collapsed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "memattach/base/text.h"

namespace memattach::report {
namespace {

constexpr std::size_t kLongestName = 1000;

std::string harmless(std::string_view name) {
    std::string text = base::printable(name, kLongestName);
    std::replace(text.begin(), text.end(), ';', ':');
    return text;
}

std::string frame_text(const profile::Profile& profile, const trace::Frame& frame) {
    const trace::Function& f = profile.function_table.at(static_cast<std::size_t>(frame.function));
    if (f.file.empty()) return harmless(f.name);
    if (frame.line == 0) return harmless(fmt::format("{} ({})", f.name, f.file));
    return harmless(fmt::format("{} ({}:{})", f.name, f.file, frame.line));
}

}  // namespace

std::string to_collapsed(const profile::Profile& profile, Metric metric) {
    const bool several_processes =
        std::any_of(profile.stacks.begin(), profile.stacks.end(),
                    [&](const profile::StackRow& stack) { return stack.pid != profile.stacks.front().pid; });
    std::map<std::pair<int, int>, std::string> thread_names;
    for (const profile::ThreadRow& thread : profile.threads) {
        thread_names[{thread.pid, thread.tid}] = thread.name;
    }
    std::map<trace::Frame, std::string> frames;
    std::string out;
    for (const profile::StackRow& stack : profile.stacks) {
        const auto weight = static_cast<std::uint64_t>(std::llround(weight_of(stack, metric)));
        if (weight == 0) continue;
        std::string line;
        const auto append = [&](const std::string& name) {
            if (!line.empty()) line += ';';
            line += name;
        };
        if (several_processes) append(fmt::format("process {}", stack.pid));
        if (stack.tid != 0) {
            const std::string& name = thread_names[{stack.pid, stack.tid}];
            append(name.empty() ? fmt::format("thread {}", stack.tid)
                                : harmless(fmt::format("thread {} ({})", stack.tid, name)));
        }
        for (std::size_t i = stack.frames.size(); i-- > 0;) {
            const auto [it, added] = frames.try_emplace(stack.frames[i]);
            if (added) it->second = frame_text(profile, stack.frames[i]);
            append(it->second);
        }
        if (line.empty()) line = profile::kNoStack;
        out += fmt::format("{} {}\n", line, weight);
    }
    return out;
}

}  // namespace memattach::report
