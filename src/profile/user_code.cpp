#include "memattach/profile/user_code.h"

#include <algorithm>

namespace memattach::profile {
namespace {

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/// "lib/python3.11/" (also lib64, also at the very start) or "/python311.zip/".
bool in_standard_library(std::string_view file) {
    for (std::size_t at = file.find("python"); at != std::string_view::npos;
         at = file.find("python", at + 1)) {
        const std::string_view before = file.substr(0, at);
        std::string_view rest = file.substr(at + 6);
        std::size_t digits = 0;
        while (digits < rest.size() && (is_digit(rest[digits]) || rest[digits] == '.')) ++digits;
        const std::string_view version = rest.substr(0, digits);
        rest.remove_prefix(digits);
        const bool in_lib = before == "lib/" || before == "lib64/" || before.ends_with("/lib/") ||
                            before.ends_with("/lib64/");
        // 3.13t: the free-threaded builds' directory.
        if (in_lib && version.find('.') != std::string_view::npos &&
            (rest.starts_with("/") || rest.starts_with("t/"))) {
            return true;
        }
        if (version.ends_with(".") && rest.starts_with("zip/")) return true;
    }
    return false;
}

bool contains_any(const std::string& text, const std::vector<std::string>& words) {
    return std::any_of(words.begin(), words.end(),
                       [&](const std::string& word) { return text.find(word) != std::string::npos; });
}

}  // namespace

bool is_user_file(std::string_view file) {
    if (file.empty()) return false;
    if (file.starts_with("<")) {
        return !file.starts_with("<frozen ") && !file.starts_with("<__array_function__") &&
               !file.starts_with("<attrs generated") && !file.starts_with("<decorator-gen");
    }
    for (const std::string_view part : {"site-packages/", "dist-packages/"}) {
        if (file.starts_with(part) || file.find("/" + std::string(part)) != std::string_view::npos)
            return false;
    }
    return file.find(".egg/") == std::string_view::npos && !in_standard_library(file);
}

Charging::Charging(const trace::FunctionTable& functions, bool all, std::vector<std::string> only,
                   std::vector<std::string> exclude)
    : functions_(functions), all_(all), only_(std::move(only)), exclude_(std::move(exclude)) {}

bool Charging::passes_filters(const trace::Function& function) const {
    const auto named_in = [&](const std::vector<std::string>& words) {
        return contains_any(function.file, words) || contains_any(function.name, words);
    };
    return (only_.empty() || named_in(only_)) && !named_in(exclude_);
}

Charging::Verdict Charging::verdict(trace::FunctionId function) const {
    const auto index = static_cast<std::size_t>(function);
    if (index >= verdicts_.size()) verdicts_.resize(functions_.size(), Verdict::unknown);
    Verdict& verdict = verdicts_.at(index);
    if (verdict == Verdict::unknown) {
        const trace::Function& f = functions_.at(function);
        // Code that --profile-only names is wanted, even where it is a library's.
        const bool user = f.kind == trace::FunctionKind::python && (!only_.empty() || is_user_file(f.file));
        verdict = !passes_filters(f) ? Verdict::filtered : user ? Verdict::user : Verdict::library;
    }
    return verdict;
}

bool Charging::is_user(trace::FunctionId function) const {
    return verdict(function) == Verdict::user;
}

std::optional<std::size_t> Charging::charged(const trace::Stack& stack) const {
    std::optional<std::size_t> innermost;
    for (std::size_t i = 0; i < stack.size(); ++i) {
        const Verdict v = verdict(stack[i].function);
        if (v == Verdict::filtered) continue;
        if (v == Verdict::user || all_) return i;
        if (!innermost) innermost = i;
    }
    return innermost;
}

}  // namespace memattach::profile
