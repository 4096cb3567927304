#pragma once

#include <map>

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

/// A service with memory and CPU: a list that is built and dropped, a cache that leaks, small objects seen
/// through windows.
inline profile::Profile memory_profile() {
    Scenario s;
    profile::BuildOptions options;
    options.memory = true;
    options.start_ns = 1;
    options.memory_limit_bytes = 2e9;
    options.source_line = [](const std::string& path, std::uint32_t line) -> std::string {
        if (path != "/srv/app/data_processor.py") return "";
        if (line == 12) return "        result = [self.transform(r) for r in records]";
        if (line == 18) return "        filtered = [r for r in result if r['value'] > 0]";
        if (line == 31) return "        self.cache[key] = value";
        return "";
    };
    profile::Builder builder(s.table, options);
    const std::string file = "/srv/app/data_processor.py";
    const auto main = s.frame("main", "/srv/app/main.py", 40);
    const auto result = builder.intern({s.frame("DataProcessor.process", file, 12), main});
    const auto filtered = builder.intern({s.frame("DataProcessor.process", file, 18), main});
    const auto cache = builder.intern({s.frame("Cache.put", file, 31), main});
    std::uint64_t address = 0x1000;
    const auto at = [](std::uint64_t ms) { return 1 + ms * 1'000'000; };
    const auto alloc = [&](std::uint64_t ms, std::uint64_t size, profile::StackId stack,
                           std::uint64_t lives_ms) {
        trace::Alloc a;
        a.time_ns = at(ms);
        a.address = address += 64;
        a.size_bytes = size;
        a.sampling_bytes = 1e6;
        builder.add(a, stack);
        return std::pair{at(ms + lives_ms), a.address};
    };
    std::multimap<std::uint64_t, std::uint64_t> ends;
    for (std::uint64_t ms = 0; ms < 20'000; ms += 20) {
        for (auto it = ends.begin(); it != ends.end() && it->first <= at(ms); it = ends.erase(it)) {
            trace::Free f;
            f.time_ns = it->first;
            f.address = it->second;
            builder.add(f);
        }
        if (ms % 100 == 0) ends.insert(alloc(ms, 2'000'000, result, 300));
        if (ms % 200 == 0) ends.insert(alloc(ms, 1'500'000, filtered, 150));
        if (ms % 400 == 0) alloc(ms, 900'000, cache, 0);
        if (ms % 100 == 0) {
            builder.add(profile::TimelinePoint{static_cast<double>(ms) / 1000,
                                               120e6 + 3.5e3 * static_cast<double>(ms),
                                               {},
                                               60 + static_cast<double>(ms / 100 % 7) * 5});
        }
        if (ms % 60 == 0) {
            builder.add(Scenario::sample(ms % 180 == 0 ? trace::CpuMode::native : trace::CpuMode::python),
                        result);
        }
        if (ms % 200 == 0) builder.add(Scenario::sample(trace::CpuMode::system), filtered);
    }
    profile::Session session;
    session.started = "2026-01-02T03:04:05Z";
    session.duration_s = 20;
    session.engine_cpu = "perf";
    session.engine_alloc = "ptrace";
    session.rate_hz = 100;
    session.threshold_bytes = 1e6;
    session.coverage_malloc = 1;
    session.coverage_object = 0.043;
    session.overhead_pct = 3.4;
    session.stopped_s = 0.51;
    session.longest_stop_us = 214;
    session.text_verified = true;
    profile::Totals totals;
    totals.rss_start_bytes = 120e6;
    totals.rss_end_bytes = 190e6;
    totals.rss_peak_bytes = 190e6;
    totals.before_attach_bytes = 120e6;
    profile::Profile p = builder.finish({4242, "python3 -m app --workers 1", "3.11.2", "/usr/bin/python3.11"},
                                        session, totals);
    profile::check(p);
    return p;
}

}  // namespace memattach::test
