#include <doctest/doctest.h>

#include "memattach/profile/builder.h"
#include "memattach/profile/user_code.h"
#include "profile/scenario.h"

using namespace memattach;
using memattach::test::Scenario;
using profile::Builder;
using profile::BuildOptions;
using trace::CpuMode;

TEST_CASE("whose file it is, from its path") {
    for (const char* file : {"/srv/app/jobs.py", "jobs.py", "<string>", "<stdin>", "<ipython-input-3-a>",
                             "/home/u/python3.11/x.py", "/opt/python/tool.py", "/srv/libpython3.11/x.py",
                             "/usr/local/bin/gunicorn"}) {
        CAPTURE(file);
        CHECK(profile::is_user_file(file));
    }
    for (const char* file :
         {"", "/usr/lib/python3.11/json/decoder.py", "lib/python3.8/os.py", "/usr/lib64/python3.9/os.py",
          "/opt/py/lib/python3.13t/os.py", "/usr/lib/python3/dist-packages/numpy/core/x.py",
          "/srv/venv/lib/python3.11/site-packages/flask/app.py", "site-packages/x.py",
          "<frozen importlib._bootstrap>", "<__array_function__ internals>", "/usr/lib/python311.zip/os.py",
          "/x/foo-1.0.egg/foo/a.py"}) {
        CAPTURE(file);
        CHECK_FALSE(profile::is_user_file(file));
    }
}

TEST_CASE("samples are charged to the innermost frame of the user's code, and add up") {
    Scenario s;
    const auto main = s.frame("main", "/app/main.py", 3);
    const auto load = s.frame("load", "/app/load.py", 10);
    const auto decode = s.frame("decode", "/usr/lib/python3.11/json/decoder.py", 337);
    BuildOptions options;
    options.source_line = [](const std::string& path, std::uint32_t line) {
        return line <= 12 ? path + "#" + std::to_string(line) : "";
    };
    Builder builder(s.table, options);
    const auto in_library = builder.intern({decode, load, main});
    const auto in_load = builder.intern({load, main});
    CHECK(builder.intern({decode, load, main}) == in_library);
    CHECK(in_load != in_library);
    for (int i = 0; i < 6; ++i) builder.add(Scenario::sample(CpuMode::python), in_library);
    for (int i = 0; i < 3; ++i) builder.add(Scenario::sample(CpuMode::native, false), in_load);
    builder.add(Scenario::sample(CpuMode::system), builder.intern({main}));
    builder.add(Scenario::waiting(), in_load);

    profile::Session session;
    session.rate_hz = 100;
    const profile::Profile p = builder.finish({}, session, {});
    profile::check(p);
    CHECK(p.totals.cpu_samples == 10);
    CHECK(p.totals.cpu_s == doctest::Approx(0.1));
    const auto* row = Scenario::line(p, "/app/load.py", 10);
    REQUIRE(row);
    CHECK(*row->figures.cpu_samples == 9);
    CHECK(*row->figures.cpu_pct == doctest::Approx(90));
    CHECK(*row->figures.python_pct == doctest::Approx(100.0 * 6 / 9));
    CHECK(*row->figures.native_pct == doctest::Approx(100.0 * 3 / 9));
    CHECK(*row->figures.gil_pct == doctest::Approx(100.0 * 6 / 9));
    CHECK(*row->figures.wait_samples == 1);
    CHECK(row->code == "/app/load.py#10");
    CHECK_FALSE(row->figures.alloc_bytes);
    const auto* caller = Scenario::line(p, "/app/main.py", 3);
    REQUIRE(caller);
    CHECK(*caller->figures.cpu_samples == 1);
    CHECK(*caller->figures.cpu_total_pct == doctest::Approx(100));
    CHECK(Scenario::line(p, "/usr/lib/python3.11/json/decoder.py", 337) == nullptr);
    CHECK(p.files.front().path == "/app/load.py");
    // The source around the lines that cost.
    REQUIRE(p.sources.size() == 2);
    CHECK(p.sources[0].path == "/app/load.py");
    REQUIRE(p.sources[0].lines.size() == 9);  // 4 … 12: the file has no more
    CHECK(p.sources[0].lines.front().first == 4);
    CHECK(p.sources[0].lines.back().second == "/app/load.py#12");
    REQUIRE(p.hotspots.size() == 1);
    CHECK(p.hotspots[0].line == 10);

    BuildOptions all;
    all.profile_all = true;
    Builder innermost(s.table, all);
    innermost.add(Scenario::sample(CpuMode::python), innermost.intern({decode, load, main}));
    const profile::Profile q = innermost.finish({}, session, {});
    profile::check(q);
    CHECK(*Scenario::line(q, "/usr/lib/python3.11/json/decoder.py", 337)->figures.cpu_samples == 1);
    CHECK(*Scenario::line(q, "/app/load.py", 10)->figures.cpu_samples == 0);
}

TEST_CASE("recursion counts once in the totals; a comprehension is part of its line") {
    Scenario s;
    const auto fib = s.frame("fib", "/app/fib.py", 4);
    const auto main = s.frame("<module>", "/app/fib.py", 9);
    const auto comprehension = s.frame("fib.<locals>.<listcomp>", "/app/fib.py", 4);
    Builder builder(s.table, {});
    builder.add(Scenario::sample(CpuMode::python), builder.intern({comprehension, fib, fib, fib, main}));
    builder.add(Scenario::sample(CpuMode::unknown), builder.intern({fib, fib, main}));
    const profile::Profile p = builder.finish({}, {}, {});
    profile::check(p);
    const auto* row = Scenario::line(p, "/app/fib.py", 4);
    CHECK(*row->figures.cpu_samples == 2);
    CHECK(*row->figures.cpu_total_pct == doctest::Approx(100));
    // The sample of unknown mode takes no part in the split.
    CHECK(*row->figures.python_pct == doctest::Approx(100));
    CHECK(p.functions.size() == 3);
    double self = 0;
    for (const auto& f : p.functions) self += static_cast<double>(*f.figures.cpu_samples);
    CHECK(self == 2);
}

TEST_CASE("nothing known is null; no stack and no samples are no error") {
    Scenario s;
    Builder empty(s.table, {});
    const profile::Profile none = empty.finish({}, {}, {});
    profile::check(none);
    CHECK(none.files.empty());
    CHECK(none.hotspots.empty());

    Builder builder(s.table, {});
    builder.add(Scenario::sample(CpuMode::unknown), builder.intern({}));
    builder.add(Scenario::sample(CpuMode::unknown),
                builder.intern({s.frame("<native>", "/lib/libc.so.6", 0, trace::FunctionKind::native)}));
    const profile::Profile p = builder.finish({}, {}, {});
    profile::check(p);
    const auto* row = Scenario::line(p, profile::kNoStack, 0);
    REQUIRE(row);
    CHECK_FALSE(row->figures.python_pct);
    CHECK(*row->figures.cpu_samples == 1);
    CHECK_FALSE(p.files[0].user_code);
    CHECK(*Scenario::line(p, "/lib/libc.so.6", 0)->figures.cpu_samples == 1);
}

TEST_CASE("filters: what is left out is charged to its caller, else to the row for other code") {
    Scenario s;
    const std::string requests = "/usr/lib/python3/dist-packages/requests/api.py";
    const auto main = s.frame("main", "/app/main.py", 3);
    const auto work = s.frame("Worker.run", "/app/work.py", 8);
    const auto library = s.frame("get", requests, 60);
    const auto fill = [&](const BuildOptions& options) {
        Builder builder(s.table, options);
        builder.add(Scenario::sample(CpuMode::python), builder.intern({library, work, main}));
        builder.add(Scenario::sample(CpuMode::python), builder.intern({main}));
        profile::Profile p = builder.finish({}, {}, {});
        profile::check(p);
        return p;
    };
    BuildOptions only;
    only.only = {"Worker"};
    const auto a = fill(only);
    CHECK(*Scenario::line(a, "/app/work.py", 8)->figures.cpu_samples == 1);
    CHECK(*Scenario::line(a, profile::kOtherCode, 0)->figures.cpu_samples == 1);
    only.only = {"requests"};
    CHECK(*Scenario::line(fill(only), requests, 60)->figures.cpu_samples == 1);
    BuildOptions exclude;
    exclude.exclude = {"work.py"};
    const auto b = fill(exclude);
    CHECK(*Scenario::line(b, "/app/main.py", 3)->figures.cpu_samples == 2);
    CHECK(Scenario::line(b, "/app/work.py", 8) == nullptr);
}

TEST_CASE("threads are told apart when asked, with their names") {
    Scenario s;
    BuildOptions options;
    options.by_thread = true;
    Builder builder(s.table, options);
    const auto stack = builder.intern({s.frame("run", "/app/t.py", 5)});
    builder.name_thread(7, 8, "worker-1");
    for (int i = 0; i < 3; ++i) builder.add(Scenario::sample(CpuMode::python, true, 8), stack);
    builder.add(Scenario::sample(CpuMode::python, true, 9), stack);
    const profile::Profile p = builder.finish({}, {}, {});
    profile::check(p);
    REQUIRE(p.threads.size() == 2);
    CHECK(p.threads[0].name == "worker-1");
    CHECK(*p.threads[0].figures.cpu_samples == 3);
    CHECK(p.stacks.size() == 2);
    CHECK(p.files[0].lines.size() == 1);
}

TEST_CASE("check finds a profile that contradicts itself") {
    Scenario s;
    Builder builder(s.table, {});
    builder.add(Scenario::sample(CpuMode::python), builder.intern({s.frame("f", "/app/a.py", 1)}));
    const profile::Profile good = builder.finish({}, {}, {});
    profile::check(good);
    profile::Profile p = good;
    p.totals.cpu_samples = 2;
    CHECK_THROWS_AS(profile::check(p), std::logic_error);
    p = good;
    p.files[0].lines[0].figures.system_pct = 1;
    CHECK_THROWS_AS(profile::check(p), std::logic_error);
    p = good;
    p.stacks[0].frames[0].function = static_cast<trace::FunctionId>(99);
    CHECK_THROWS_AS(profile::check(p), std::logic_error);
    p = good;
    p.files[0].figures.alloc_bytes = 5;
    CHECK_THROWS_AS(profile::check(p), std::logic_error);
    p = good;
    p.timeline = {{1, {}, {}, {}}, {0.5, {}, {}, {}}};
    CHECK_THROWS_AS(profile::check(p), std::logic_error);
}
