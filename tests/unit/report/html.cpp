#include "memattach/report/html.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "memattach/base/text.h"
#include "report/sample_profile.h"

using namespace memattach;

namespace {

std::size_t count_of(const std::string& text, const std::string& what) {
    std::size_t count = 0;
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
    return count;
}

/// What stands between the tags of the data element.
std::string data_of(const std::string& page) {
    const std::string open = "<script type=\"application/json\" id=\"data\">";
    const std::size_t from = page.find(open) + open.size();
    return page.substr(from, page.find("</script>", from) - from);
}

}  // namespace

TEST_CASE("escapes for markup and for scripts") {
    CHECK(report::html_escaped("<a href=\"x\" id='y'>&\xFF") ==
          "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;\xEF\xBF\xBD");
    CHECK(report::script_escaped("\"</script><!--&\xE2\x80\xA8\xE2\x80\xA9\xE2\x80\xA6\"") ==
          "\"\\u003c/script\\u003e\\u003c!--\\u0026\\u2028\\u2029\xE2\x80\xA6\"");
}

TEST_CASE("the page stands alone: nothing is loaded, and no script but its own may run") {
    const std::string page = report::to_html(test::cpu_profile());
    CHECK(page.starts_with("<!doctype html>"));
    CHECK(page.find("default-src 'none'; script-src 'sha256-") != std::string::npos);
    CHECK(page.find("unsafe-inline") == std::string::npos);
    CHECK(page.find(" src=") == std::string::npos);
    CHECK(page.find("@import") == std::string::npos);
    CHECK(page.find("url(") == std::string::npos);
    CHECK(page.find("innerHTML") == std::string::npos);
    CHECK(page.find("{{") == std::string::npos);
    const auto data = nlohmann::json::parse(data_of(page));
    CHECK(data["profile"]["schema"] == "memattach.profile/1");
    CHECK(data["user_functions"] == nlohmann::json({true, true, false}));
}

TEST_CASE("nothing of a hostile target becomes markup") {
    const std::string plain = report::to_html(test::cpu_profile());
    for (const profile::Profile& profile : {test::nasty_profile(), test::memory_profile()}) {
        const std::string page = report::to_html(profile);
        CHECK(base::valid_utf8(page) == page);
        // As many tags as there are in a tame report.
        CHECK(count_of(page, "<script") == count_of(plain, "<script"));
        CHECK(count_of(page, "</script>") == count_of(plain, "</script>"));
        CHECK(count_of(page, "<img") == 0);
        CHECK(count_of(page, "<b>") == 0);
        CHECK(page.find("\x1b") == std::string::npos);
        CHECK(page.find("\xE2\x80\xA8") == std::string::npos);
        const std::string title =
            page.substr(page.find("<title>") + 7, page.find("</title>") - page.find("<title>") - 7);
        CHECK(title.find('<') == std::string::npos);
        CHECK(nlohmann::json::parse(data_of(page)).is_object());
    }
}
