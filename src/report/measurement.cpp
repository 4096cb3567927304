#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "memattach/base/text.h"
#include "memattach/report/layout.h"
#include "memattach/report/table.h"

namespace memattach::report {
namespace {

void item(std::string& out, const char* name, const std::string& value) {
    out += fmt::format("  {}{}\n", pad_right(name, 10), value);
}

void join(std::string& text, const std::string& part) {
    if (!text.empty()) text += ", ";
    text += part;
}

std::string watched(std::string_view what, double coverage) {
    if (coverage >= 0.9995) return fmt::format("{} watched all the time", what);
    return fmt::format("{} watched {:.{}f} % of the time", what, 100 * coverage, coverage < 0.1 ? 1 : 0);
}

std::string target_text(const profile::Profile& profile) {
    const profile::Target& target = profile.target;
    std::string text = fmt::format("pid {}", target.pid);
    if (!target.python.empty()) join(text, "CPython " + base::printable(target.python, 60));
    if (!target.command.empty()) join(text, base::printable(target.command, 200));
    if (profile.session.target_exited) text += " (ended during the profile)";
    return text;
}

std::string cpu_text(const profile::Profile& profile) {
    const profile::Session& session = profile.session;
    std::string text = fmt::format("{}, {:g} Hz, {} samples on CPU", session.engine_cpu, session.rate_hz,
                                   count_text(profile.totals.cpu_samples));
    if (profile.totals.cpu_s > 0)
        text += fmt::format(" ({} of CPU time)", duration_text(profile.totals.cpu_s));
    return text;
}

std::string memory_text(const profile::Profile& profile) {
    const profile::Session& session = profile.session;
    std::string text = fmt::format("{}, one sample per {} or less", session.engine_alloc,
                                   bytes_text(session.threshold_bytes));
    if (session.coverage_malloc) join(text, watched("malloc", *session.coverage_malloc));
    if (session.coverage_object) join(text, watched("small objects", *session.coverage_object));
    if (session.coverage_large && session.large_from_bytes)
        join(text, watched(fmt::format("blocks of {} and more",
                                       bytes_text(static_cast<double>(*session.large_from_bytes))),
                           *session.coverage_large));
    return text;
}

std::string half_width_text(const std::optional<double>& bytes) {
    return bytes ? fmt::format(" (± {})", bytes_text(*bytes)) : "";
}

std::string totals_text(const profile::Totals& totals) {
    std::string text = fmt::format("{} allocated", bytes_text(*totals.alloc_bytes));
    text += half_width_text(totals.alloc_ci95);
    if (totals.freed_bytes) join(text, bytes_text(*totals.freed_bytes) + " of it freed");
    if (totals.live_bytes) {
        join(text, bytes_text(*totals.live_bytes) + half_width_text(totals.live_ci95) + " live at the end");
    }
    if (totals.peak_bytes) {
        join(text, bytes_text(*totals.peak_bytes) + half_width_text(totals.peak_ci95) + " at the peak");
    }
    return text;
}

std::string resident_text(const profile::Totals& totals) {
    std::string text;
    if (totals.rss_start_bytes) join(text, bytes_text(*totals.rss_start_bytes) + " at the start");
    if (totals.rss_end_bytes) join(text, bytes_text(*totals.rss_end_bytes) + " at the end");
    if (totals.rss_peak_bytes) join(text, bytes_text(*totals.rss_peak_bytes) + " at most");
    if (totals.before_attach_bytes) {
        join(text, bytes_text(*totals.before_attach_bytes) + " from before attach, charged to no line");
    }
    return text;
}

std::string cost_text(const profile::Session& session) {
    std::string text;
    if (session.overhead_pct) {
        text = fmt::format("{:.1f} % of the target's run time", *session.overhead_pct);
    }
    if (session.longest_stop_us > 0) {
        join(text,
             fmt::format("stopped for {} in all, {} at the longest", duration_text(session.stopped_s),
                         session.longest_stop_us < 1000 ? fmt::format("{:.0f} µs", session.longest_stop_us)
                                                        : duration_text(session.longest_stop_us / 1e6)));
    } else {
        join(text, "the target was never stopped");
    }
    return text;
}

std::string loss_text(const profile::Profile& profile) {
    std::string text;
    for (std::size_t i = 0; i < profile.session.loss.counts.size(); ++i) {
        const std::uint64_t count = profile.session.loss.counts[i];
        if (count == 0) continue;
        std::string name(trace::name_of(static_cast<trace::Loss>(i)));
        std::replace(name.begin(), name.end(), '_', ' ');
        join(text, fmt::format("{} {}", count_text(count), name));
    }
    return text.empty() ? "nothing" : text;
}

}  // namespace

std::string measurement_text(const profile::Profile& profile) {
    const profile::Session& session = profile.session;
    std::string out = "How it was measured\n";
    item(out, "target", target_text(profile));
    item(out, "session",
         duration_text(session.duration_s) +
             (session.started.empty() ? "" : ", from " + base::printable(session.started, 40)));
    if (!session.engine_cpu.empty()) item(out, "CPU", cpu_text(profile));
    if (!session.engine_alloc.empty()) item(out, "memory", memory_text(profile));
    if (profile.totals.alloc_bytes) item(out, "", totals_text(profile.totals));
    if (profile.totals.unknown_frees && *profile.totals.unknown_frees > 0) {
        item(out, "",
             count_text(*profile.totals.unknown_frees) +
                 " frees of blocks that were not sampled or are older than the session");
    }
    if (const std::string resident = resident_text(profile.totals); !resident.empty()) {
        item(out, "resident", resident);
    }
    item(out, "cost", cost_text(session));
    item(out, "lost", loss_text(profile));
    if (session.text_verified) {
        item(out, "text",
             *session.text_verified ? "verified: the target's code equals its file, byte for byte"
                                    : "NOT verified: the target's code differs from its file");
    }
    for (const std::string& note : session.notes) item(out, "note", base::printable(note, 500));
    return out;
}

}  // namespace memattach::report
