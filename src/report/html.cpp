#include "memattach/report/html.h"

#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "memattach/base/text.h"
#include "memattach/profile/user_code.h"
#include "memattach/report/json.h"

namespace memattach::report {
namespace {

std::string hex_to_base64(std::string_view hex) {
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const auto nibble = [](char c) {
        return static_cast<std::uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    };
    std::vector<std::uint32_t> bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes.push_back(nibble(hex[i]) << 4 | nibble(hex[i + 1]));
    std::string out;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        const std::size_t left = bytes.size() - i;
        const std::uint32_t triple =
            bytes[i] << 16 | (left > 1 ? bytes[i + 1] << 8 : 0) | (left > 2 ? bytes[i + 2] : 0);
        out += kDigits[triple >> 18 & 63];
        out += kDigits[triple >> 12 & 63];
        out += left > 1 ? kDigits[triple >> 6 & 63] : '=';
        out += left > 2 ? kDigits[triple & 63] : '=';
    }
    return out;
}

std::string replaced(std::string_view page, const std::map<std::string_view, std::string>& values) {
    std::string out;
    for (std::size_t at = 0;;) {
        const std::size_t open = page.find("{{", at);
        if (open == std::string_view::npos) return out + std::string(page.substr(at));
        const std::size_t close = page.find("}}", open);
        out += page.substr(at, open - at);
        out += values.at(page.substr(open + 2, close - open - 2));
        at = close + 2;
    }
}

}  // namespace

std::string html_escaped(std::string_view text) {
    std::string out;
    for (const char c : base::valid_utf8(text)) {
        switch (c) {
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '&':
                out += "&amp;";
                break;
            case '"':
                out += "&quot;";
                break;
            case '\'':
                out += "&#39;";
                break;
            default:
                out += c;
        }
    }
    return out;
}

std::string script_escaped(std::string_view json) {
    std::string out;
    out.reserve(json.size() + json.size() / 16);
    for (std::size_t i = 0; i < json.size(); ++i) {
        switch (json[i]) {
            case '<':
                out += "\\u003c";
                break;
            case '>':
                out += "\\u003e";
                break;
            case '&':
                out += "\\u0026";
                break;
            case '\xE2':
                if (json.substr(i, 3) == "\xE2\x80\xA8" || json.substr(i, 3) == "\xE2\x80\xA9") {
                    out += json[i + 2] == '\xA8' ? "\\u2028" : "\\u2029";
                    i += 2;
                    break;
                }
                [[fallthrough]];
            default:
                out += json[i];
        }
    }
    return out;
}

std::string to_html(const profile::Profile& profile) {
    nlohmann::json user_functions = nlohmann::json::array();
    for (const trace::Function& function : profile.function_table) {
        user_functions.push_back(function.kind == trace::FunctionKind::python &&
                                 profile::is_user_file(function.file));
    }
    std::string json = to_json(profile);
    json.pop_back();
    const std::string data = "{\"profile\":" + json + ",\"user_functions\":" + user_functions.dump() + "}";
    const std::string policy = "default-src 'none'; script-src 'sha256-" +
                               hex_to_base64(html_assets::kScriptSha256) + "'; style-src 'sha256-" +
                               hex_to_base64(html_assets::kStyleSha256) +
                               "'; base-uri 'none'; form-action 'none'";
    const std::string title =
        "memattach: " + (profile.target.command.empty() ? "pid " + std::to_string(profile.target.pid)
                                                        : base::printable(profile.target.command, 120));
    return replaced(html_assets::kPage, {{"title", html_escaped(title)},
                                         {"csp", policy},
                                         {"style", html_assets::kStyle},
                                         {"data", script_escaped(data)},
                                         {"script", html_assets::kScript}});
}

}  // namespace memattach::report
