#pragma once

#include "profile/scenario.h"

namespace memattach::test {

/// Names that a target could have to harm a terminal, a file or a web page.
inline const char* const kNastyName =
    "f</script><script>alert(1)</script>\"'`&;\n\x1b[2J\xE2\x80\xA8\xE2\x80\xAE\xFF";
inline const char* const kNastyFile = "/app/<img src=x onerror=alert(1)>; \"'\r\n.py";

/// A service that decodes JSON, with CPU samples alone.
inline profile::Profile cpu_profile() {
    Scenario s;
    profile::BuildOptions options;
    options.source_line = [](const std::string& path, std::uint32_t line) -> std::string {
        if (path == "/app/load.py" && line == 10) return "    return json.loads(text)";
        if (path == "/app/main.py" && line == 3) return "    for text in feed: load(text)";
        return "";
    };
    profile::Builder builder(s.table, options);
    const auto main = s.frame("main", "/app/main.py", 3);
    const auto load = s.frame("Loader.load", "/app/load.py", 10);
    const auto decode = s.frame("decode", "/usr/lib/python3.11/json/decoder.py", 337);
    const auto in_library = builder.intern({decode, load, main});
    const auto in_main = builder.intern({main});
    for (int i = 0; i < 60; ++i) builder.add(Scenario::sample(trace::CpuMode::python), in_library);
    for (int i = 0; i < 20; ++i) builder.add(Scenario::sample(trace::CpuMode::native), in_library);
    for (int i = 0; i < 20; ++i) builder.add(Scenario::sample(trace::CpuMode::system), in_main);
    builder.add(profile::TimelinePoint{0, 50e6, {}, 100});
    builder.add(profile::TimelinePoint{0.1, 50.5e6, {}, 98});
    profile::Session session;
    session.started = "2026-01-02T03:04:05Z";
    session.duration_s = 1.25;
    session.engine_cpu = "perf";
    session.rate_hz = 100;
    session.loss[trace::Loss::torn_stacks] = 3;
    session.notes = {"a note"};
    profile::Target target{4242, "python3 app.py", "3.11.2", "/usr/bin/python3.11"};
    profile::Totals totals;
    totals.rss_start_bytes = 50e6;
    totals.rss_end_bytes = 50.5e6;
    totals.rss_peak_bytes = 50.5e6;
    profile::Profile p = builder.finish(target, session, totals);
    profile::check(p);
    return p;
}

/// One stack of two frames with hostile names, on a hostile command line.
inline profile::Profile nasty_profile() {
    Scenario s;
    profile::BuildOptions options;
    options.by_thread = true;
    options.source_line = [](const std::string&, std::uint32_t) {
        return std::string("x = '</script><!-- \xE2\x80\xA8' + \"\x1b]0;owned\x07\" \xC0\xAF");
    };
    profile::Builder builder(s.table, options);
    builder.name_thread(7, 7, kNastyName);
    const auto stack =
        builder.intern({s.frame(kNastyName, kNastyFile, 5), s.frame("main;main", "a;b.py", 1)});
    for (int i = 0; i < 30; ++i) builder.add(Scenario::sample(trace::CpuMode::python), stack);
    profile::Session session;
    session.engine_cpu = "perf";
    session.rate_hz = 100;
    session.notes = {kNastyName};
    profile::Profile p = builder.finish({1, kNastyName, kNastyName, kNastyFile}, session, {});
    profile::check(p);
    return p;
}

}  // namespace memattach::test
