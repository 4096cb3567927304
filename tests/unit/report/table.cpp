#include "memattach/report/table.h"

#include <doctest/doctest.h>

#include <sstream>

#include "memattach/base/text.h"
#include "memattach/report/layout.h"
#include "report/sample_profile.h"

using namespace memattach;

TEST_CASE("layout: widths count columns, not bytes") {
    CHECK(report::columns_of("añ履🐍") == 1 + 1 + 2 + 2);
    CHECK(report::cut_right("履歴書", 4) == "履…");
    CHECK(report::cut_right("abc", 3) == "abc");
    CHECK(report::cut_left("/srv/app/main.py", 8) == "…main.py");
    CHECK(report::pad_left("±", 3) == "  ±");
    CHECK(report::bytes_text(0) == "0");
    CHECK(report::bytes_text(999) == "999 bytes");
    CHECK(report::bytes_text(100'000) == "100 KB");
    CHECK(report::bytes_text(225.6e6) == "226 MB");
    CHECK(report::bytes_text(-1.04e9) == "-1.0 GB");
    CHECK(report::duration_text(0.45) == "450 ms");
    CHECK(report::duration_text(59.97) == "1 min");
    CHECK(report::duration_text(200) == "3 min 20 s");
    CHECK(report::duration_text(18600) == "5 h 10 min");
    CHECK(report::count_text(1234567) == "1,234,567");
}

TEST_CASE("the table of a CPU profile") {
    CHECK(
        report::to_table(test::cpu_profile(), {}) ==
        R"(/app/load.py                                                                      80.0 % of CPU time
 Line |  CPU % | ± | Total % | Python % | Code
   10 | 80.0 % | 9 |  80.0 % |   75.0 % | return json.loads(text)

/app/main.py                                                                      20.0 % of CPU time
 Line |  CPU % | ± | Total % | Python % | Code
    3 | 20.0 % | 9 | 100.0 % |    0.0 % | for text in feed: load(text)

Hotspots
  1.  80.0 % of CPU time  /app/load.py:10  in Loader.load
  2.  20.0 % of CPU time  /app/main.py:3  in main

How it was measured
  target    pid 4242, CPython 3.11.2, python3 app.py
  session   1.2 s, from 2026-01-02T03:04:05Z
  CPU       perf, 100 Hz, 100 samples on CPU (1.0 s of CPU time)
  resident  50.0 MB at the start, 50.5 MB at the end, 50.5 MB at most
  cost      the target was never stopped
  lost      3 torn stacks
  note      a note
)");
}

TEST_CASE("the table of a profile with memory has the design's columns, leak suspects and what it cost") {
    const std::string table = report::to_table(test::memory_profile(), {});
    CAPTURE(table);
    const auto has = [&](const char* text) { return table.find(text) != std::string::npos; };
    CHECK(table.starts_with("/srv/app/data_processor.py "));
    CHECK(has("100.0 % of allocated memory\n"));
    CHECK(
        has(" Line | Memory % | Memory (MB) |  ± | Live (MB) |  ± | Peak (MB) |  CPU % | Python % | Code\n"));
    CHECK(
        has("   12 |   63.2 % |       462.6 | 24 |       6.9 |  3 |       6.9 | 77.0 % |   66.5 % | "
            "result = [self.transform(r) for r in records]\n"));
    CHECK(has(
        "Leak suspects\n  1. /srv/app/data_processor.py:31  in Cache.put\n     grows 227 MB a minute (± "));
    CHECK(has("memory limit in 7 min 58 s"));
    CHECK(has("malloc watched all the time, small objects watched 4.3 % of the time\n"));
    CHECK(has("120 MB from before attach, charged to no line\n"));
    CHECK(has("3.4 % of the target's run time, stopped for 510 ms in all, 214 µs at the longest\n"));
    CHECK(has("  text      verified: the target's code equals its file, byte for byte\n"));

    // Narrow terminals lose columns, not the shape; the memory share and the code stay.
    report::TableOptions narrow;
    narrow.width = 60;
    const std::string cut = report::to_table(test::memory_profile(), narrow);
    CHECK(cut.find(" Line | Memory % | Memory (MB) |") != std::string::npos);
    CHECK(cut.find("Python %") == std::string::npos);
    CHECK(cut.find("| Code\n") != std::string::npos);
}

TEST_CASE("functions instead of lines; fewer rows say what was left out") {
    report::TableOptions options;
    options.functions = true;
    options.max_rows = 1;
    const std::string table = report::to_table(test::cpu_profile(), options);
    CHECK(table.find("Loader.load | 80.0 %") != std::string::npos);
    CHECK(table.find("… and 1 more function with 20.0 % of CPU time") != std::string::npos);
}

TEST_CASE("nothing of a hostile target reaches the terminal raw, and lines keep to its width") {
    for (const std::size_t width : {40UL, 80UL, 200UL}) {
        report::TableOptions options;
        options.width = width;
        const std::string table = report::to_table(test::nasty_profile(), options);
        CHECK(table.find('\x1b') == std::string::npos);
        CHECK(table.find('\r') == std::string::npos);
        CHECK(table.find("\xE2\x80\xAE") == std::string::npos);
        CHECK(base::valid_utf8(table) == table);
        std::istringstream lines(table.substr(0, table.find("\nHotspots")));
        for (std::string line; std::getline(lines, line);) {
            CAPTURE(line);
            CHECK(report::columns_of(line) <= width);
        }
    }
}

TEST_CASE("waiting has a column, threads have a list, and rows of zeros are only counted") {
    test::Scenario s;
    profile::BuildOptions options;
    options.by_thread = true;
    profile::Builder builder(s.table, options);
    builder.name_thread(7, 7, "worker-1");
    builder.name_thread(7, 8, "sleeper");
    const auto hot = builder.intern({s.frame("hot", "/app/a.py", 5)});
    const auto rare = builder.intern({s.frame("rare", "/app/rare.py", 6)});
    const auto waiting = builder.intern({s.frame("waiting", "/app/a.py", 9)});
    const auto asleep = builder.intern({s.frame("asleep", "/app/b.py", 2)});
    for (int i = 0; i < 5000; ++i) builder.add(test::Scenario::sample(trace::CpuMode::python), hot);
    builder.add(test::Scenario::sample(trace::CpuMode::python), rare);
    trace::CpuSample wait = test::Scenario::sample(trace::CpuMode::unknown);
    wait.on_cpu = false;
    wait.tid = 8;
    for (int i = 0; i < 250; ++i) builder.add(wait, waiting);
    for (int i = 0; i < 100; ++i) builder.add(wait, asleep);
    profile::Session session;
    session.engine_cpu = "perf";
    session.rate_hz = 100;
    const std::string table = report::to_table(builder.finish({}, session, {}), {});
    CAPTURE(table);
    const auto has = [&](const char* text) { return table.find(text) != std::string::npos; };
    CHECK(has("Python % | Wait (s) | Code\n"));
    CHECK(has("    5 | 100.0 % | 0.1 | 100.0 % |  100.0 % |      0.0 | hot\n"));
    CHECK(has("    9 |   0.0 % | 0.1 |   0.0 % |          |      2.5 | waiting\n"));
    CHECK(has("\n/app/b.py  "));
    CHECK(has("  1.0 s waited\n Line |"));
    CHECK_FALSE(has("rare"));
    CHECK(has("… and 1 more line with 0.0 % of CPU time\n"));
    CHECK(has("Threads\n  100.0 % of CPU time  7 \"worker-1\"\n    0.0 % of CPU time  8 \"sleeper\"\n"));
}

TEST_CASE("an empty profile says so") {
    CHECK(report::to_table({}, {}).starts_with("Nothing was sampled."));
    profile::Profile idle;
    idle.session.engine_cpu = "perf";
    CHECK(report::to_table(idle, {}).starts_with("No sample was taken on CPU: the target was idle."));
}

TEST_CASE("colours only when asked for") {
    report::TableOptions options;
    CHECK(report::to_table(test::cpu_profile(), options).find('\x1b') == std::string::npos);
    options.color = true;
    CHECK(report::to_table(test::cpu_profile(), options).find("\x1b[31m") != std::string::npos);
}
