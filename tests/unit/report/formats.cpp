#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/report/collapsed.h"
#include "memattach/report/json.h"
#include "memattach/report/speedscope.h"
#include "report/sample_profile.h"

using namespace memattach;
using nlohmann::json;

namespace {

/// The error of reading `text`; empty where there was none.
std::string error_of(const std::string& text) {
    try {
        (void)report::read_json(text, "p.json");
    } catch (const base::Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("JSON: the documented fields; unknown is null") {
    const json j = json::parse(report::to_json(test::cpu_profile()));
    CHECK(j["schema"] == "memattach.profile/1");
    CHECK(j["target"]["pid"] == 4242);
    CHECK(j["session"]["engine"]["cpu"] == "perf");
    CHECK(j["session"]["engine"]["alloc"].is_null());
    CHECK(j["session"]["coverage"]["malloc"].is_null());
    CHECK(j["session"]["loss"]["torn_stacks"] == 3);
    CHECK(j["totals"]["alloc_bytes"].is_null());
    CHECK(j["totals"]["cpu_samples"] == 100);
    const json line = j["files"][0]["lines"][0];
    CHECK(j["files"][0]["path"] == "/app/load.py");
    CHECK(line["line"] == 10);
    CHECK(line["function"] == "Loader.load");
    CHECK(line["code"] == "    return json.loads(text)");
    CHECK(line["cpu_pct"] == 80);
    CHECK(line["python_pct"] == 75);
    CHECK(line["alloc_bytes"].is_null());
    CHECK(line["live_bytes"].is_null());
    CHECK(j["timeline"]["t_s"] == json({0.0, 0.1}));
    CHECK(j["stacks"].size() == 2);
    CHECK(j["frame_table"].size() == 3);
    CHECK(j["hotspots"][0]["metric"] == "cpu");
}

TEST_CASE("JSON: what is read back writes the same again") {
    for (const profile::Profile& profile :
         {test::cpu_profile(), test::memory_profile(), profile::Profile{}}) {
        const std::string text = report::to_json(profile);
        CHECK(report::to_json(report::read_json(text, "p.json")) == text);
    }
    // Invalid UTF-8 is replaced on the way out; from then on it is stable.
    const std::string text = report::to_json(test::nasty_profile());
    CHECK(base::valid_utf8(text) == text);
    CHECK(report::to_json(report::read_json(text, "p.json")) == text);
}

TEST_CASE("JSON: what is no profile is refused in one line that names the file") {
    CHECK(error_of("").starts_with("p.json: not a memattach profile: "));
    CHECK(error_of("{\"schema\": 1e999}").starts_with("p.json: not a memattach profile: "));
    CHECK(error_of("[]") == "p.json: not a memattach profile: this is not a memattach profile");
    CHECK(error_of(R"({"schema":"pprof\u001b[2J"})").find('\x1b') == std::string::npos);
    CHECK_FALSE(error_of(std::string(1'000'000, '[')).empty());
    CHECK_FALSE(error_of(std::string(1'000'000, '[') + std::string(1'000'000, ']')).empty());

    const json good = json::parse(report::to_json(test::cpu_profile()));
    CHECK(error_of(good.dump()).empty());
    const auto with = [&](const char* pointer, const json& value) {
        json bad = good;
        bad[json::json_pointer(pointer)] = value;
        const std::string error = error_of(bad.dump());
        CHECK(error.find('\n') == std::string::npos);
        return error;
    };
    CHECK(with("/target/pid", "x") == "p.json: not a memattach profile: target.pid is not a whole number");
    CHECK(with("/target/pid", 1e30) == "p.json: not a memattach profile: target.pid is not a whole number");
    CHECK(with("/target/pid", 5'000'000'000) == "p.json: not a memattach profile: target.pid is too large");
    CHECK(with("/files/0/lines/0/line", -1) ==
          "p.json: not a memattach profile: files[].lines[].line is too small");
    CHECK_FALSE(with("/files", 3).empty());
    CHECK_FALSE(with("/files/0", 3).empty());
    CHECK_FALSE(with("/totals", json()).empty());
    CHECK_FALSE(with("/frame_table/0/2", 0).empty());  // a frame that calls itself
    CHECK_FALSE(with("/frame_table/0/0", 77).empty());
    CHECK_FALSE(with("/stacks/0/frame", 77).empty());
    CHECK_FALSE(with("/timeline/rss_bytes", json::array()).empty());
    CHECK(with("/totals/cpu_samples", 5).starts_with("p.json: the profile contradicts itself: "));
}

TEST_CASE("JSON: every value of a profile replaced by others never crashes the reader") {
    const json good = json::parse(report::to_json(test::nasty_profile())).flatten();
    std::size_t refused = 0;
    std::size_t turn = 0;
    const std::array<json, 6> values = {json(),    json(-1),      json(1e308),
                                        json("x"), json::array(), json::object()};
    for (const auto& item : good.items()) {
        // Two of the six for each place.
        for (const json& value : {values[turn % 6], values[(turn + 3) % 6]}) {
            ++turn;
            json bad = good;
            bad[item.key()] = value.is_structured() ? json() : value;
            json tree = bad.unflatten();
            if (value.is_structured()) tree[json::json_pointer(item.key())] = value;
            refused += error_of(tree.dump()).empty() ? 0 : 1;
        }
    }
    CHECK(refused > good.size() / 2);
}

TEST_CASE("collapsed: outermost frame first, whole weights, harmless names") {
    const profile::Profile p = test::cpu_profile();
    CHECK(report::to_collapsed(p, report::Metric::cpu_samples) ==
          "main (/app/main.py:3);Loader.load (/app/load.py:10);decode "
          "(/usr/lib/python3.11/json/decoder.py:337) 80\n"
          "main (/app/main.py:3) 20\n");
    CHECK(report::to_collapsed(p, report::Metric::alloc_bytes).empty());
    CHECK(report::metrics_of(p) == std::vector{report::Metric::cpu_samples});

    const profile::Profile m = test::memory_profile();
    CHECK(report::metrics_of(m) == std::vector{report::Metric::cpu_samples, report::Metric::alloc_bytes,
                                               report::Metric::live_bytes, report::Metric::peak_bytes});
    const std::string live = report::to_collapsed(m, report::Metric::live_bytes);
    CHECK(live.find("main (/srv/app/main.py:40);Cache.put (/srv/app/data_processor.py:31) ") !=
          std::string::npos);

    const std::string nasty = report::to_collapsed(test::nasty_profile(), report::Metric::cpu_samples);
    CHECK(std::count(nasty.begin(), nasty.end(), '\n') == 1);
    CHECK(std::count(nasty.begin(), nasty.end(), ';') == 2);  // thread, main, f
    CHECK(nasty.find('\x1b') == std::string::npos);
    CHECK(nasty.ends_with(" 30\n"));
}

TEST_CASE("speedscope: what its schema asks for") {
    for (const profile::Profile& p :
         {test::cpu_profile(), test::memory_profile(), test::nasty_profile(), profile::Profile{}}) {
        const json j = json::parse(report::to_speedscope(p));
        CHECK(j["$schema"] == "https://www.speedscope.app/file-format-schema.json");
        CHECK(j["exporter"].is_string());
        for (const json& frame : j["shared"]["frames"]) {
            CHECK(frame["name"].is_string());
            CHECK((!frame.contains("line") || frame["line"].is_number_unsigned()));
            CHECK((!frame.contains("file") || frame["file"].is_string()));
        }
        if (j["profiles"].empty()) {
            CHECK_FALSE(j.contains("activeProfileIndex"));
        } else {
            CHECK(j["activeProfileIndex"].get<std::size_t>() < j["profiles"].size());
        }
        for (const json& one : j["profiles"]) {
            CHECK(one["type"] == "sampled");
            CHECK((one["unit"] == "seconds" || one["unit"] == "bytes" || one["unit"] == "none"));
            CHECK(one["samples"].size() == one["weights"].size());
            double total = 0;
            for (const json& weight : one["weights"]) total += weight.get<double>();
            CHECK(one["endValue"].get<double>() - one["startValue"].get<double>() == doctest::Approx(total));
            for (const json& sample : one["samples"]) {
                CHECK_FALSE(sample.empty());
                for (const json& frame : sample)
                    CHECK(frame.get<std::size_t>() < j["shared"]["frames"].size());
            }
        }
    }
    const json j = json::parse(report::to_speedscope(test::cpu_profile()));
    CHECK(j["profiles"][0]["name"] == "cpu");
    CHECK(j["profiles"][0]["endValue"] == doctest::Approx(1.0));
    CHECK(j["shared"]["frames"][j["profiles"][0]["samples"][0][0].get<std::size_t>()]["name"] == "main");
}
