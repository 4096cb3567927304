#include "memattach/profile/advice.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <string_view>

namespace memattach::profile {
namespace {

constexpr std::uint32_t kMostLinesOfCall = 12;
constexpr std::uint32_t kMostLinesUpToLoop = 60;

bool is_name(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// The line without its comment, and with nothing between quotes: "" stays for each string.
std::string bare(const std::string& line) {
    std::string out;
    char quote = 0;
    for (std::size_t i = 0; i < line.size(); ++i) {
        const char c = line[i];
        if (quote != 0) {
            if (c == '\\') {
                ++i;
            } else if (c == quote) {
                quote = 0;
                out += '"';
            }
        } else if (c == '#') {
            break;
        } else if (c == '"' || c == '\'') {
            quote = c;
            out += '"';
        } else {
            out += c;
        }
    }
    return out;
}

std::size_t indent_of(const std::string& line) {
    return std::min(line.find_first_not_of(" \t"), line.size());
}

/// Where `name(` is called; npos where it isn't, or is part of a longer name.
std::size_t find_call(const std::string& code, const std::string& name) {
    for (std::size_t at = code.find(name + "("); at != std::string::npos;
         at = code.find(name + "(", at + 1)) {
        if (at == 0 || !is_name(code[at - 1])) return at;
    }
    return std::string::npos;
}

/// `[… for … in …]`, closed on this line; not a subscript.
bool has_list_comprehension(const std::string& code) {
    for (std::size_t open = code.find('['); open != std::string::npos; open = code.find('[', open + 1)) {
        if (open > 0 && (is_name(code[open - 1]) || code[open - 1] == ')' || code[open - 1] == ']')) continue;
        int depth = 0;
        bool loops = false;
        for (std::size_t i = open; i < code.size(); ++i) {
            if (code[i] == '[' || code[i] == '(' || code[i] == '{') ++depth;
            if (code[i] == ']' || code[i] == ')' || code[i] == '}') --depth;
            if (depth == 0) {
                if (loops) return true;
                break;
            }
            if (depth == 1 && code.compare(i, 5, " for ") == 0) loops = true;
        }
    }
    return false;
}

/// Everything between the parentheses of the call that begins at `at` of `line`; nothing where they don't
/// close soon.
std::optional<std::string> arguments_of(std::uint32_t line, std::size_t at, const LineOfFile& line_of_file) {
    std::string arguments;
    int depth = 0;
    for (std::uint32_t n = 0; n < kMostLinesOfCall; ++n) {
        const std::string code = bare(line_of_file(line + n));
        for (std::size_t i = n == 0 ? at : 0; i < code.size(); ++i) {
            if (code[i] == '(') ++depth;
            if (code[i] == ')' && --depth == 0) return arguments;
            if (depth > 0) arguments += code[i];
        }
        arguments += ' ';
    }
    return std::nullopt;
}

/// `name += "…"`, f"…", str(…) or a sum with one of these: a string by its looks.
bool adds_to_string(const std::string& code) {
    const std::size_t at = code.find("+=");
    if (at == std::string::npos) return false;
    std::size_t start = code.find_first_not_of(' ', at + 2);
    if (start == std::string::npos) return false;
    if (code.compare(start, 4, "str(") == 0) return true;
    for (int prefix = 0; prefix < 2 && std::string_view("fFrRuU").find(code[start]) != std::string::npos;
         ++prefix) {
        ++start;
    }
    return code[start] == '"' || code.find("+ \"", start) != std::string::npos ||
           code.find("\" +", start) != std::string::npos;
}

/// Whether the line belongs to the body of a loop of its function.
bool in_loop(std::uint32_t line, const LineOfFile& line_of_file) {
    std::size_t indent = indent_of(line_of_file(line));
    for (std::uint32_t n = 1; n < kMostLinesUpToLoop && n < line && indent > 0; ++n) {
        const std::string code = bare(line_of_file(line - n));
        const std::size_t start = indent_of(code);
        if (start == code.size() || start >= indent) continue;
        indent = start;
        const auto begins_with = [&](const char* word) {
            return code.compare(start, std::string(word).size(), word) == 0;
        };
        if (begins_with("for ") || begins_with("while ") || begins_with("async for ")) return true;
        if (begins_with("def ") || begins_with("async def ") || begins_with("class ")) return false;
    }
    return false;
}

}  // namespace

std::string memory_advice(std::uint32_t line, const LineOfFile& line_of_file) {
    const std::string code = bare(line_of_file(line));
    if (code.find(".readlines()") != std::string::npos)
        return "readlines() holds all lines of the file at once; a loop over the file itself has one at a "
               "time.";
    if (const std::size_t at = find_call(code, "read_csv"); at != std::string::npos) {
        const auto arguments = arguments_of(line, at, line_of_file);
        if (!arguments) return "";
        const auto has = [&](const char* name) { return arguments->find(name) != std::string::npos; };
        if (has("chunksize") || has("nrows") || has("iterator") || has("**")) return "";
        return "read_csv() holds the whole file; with chunksize=… it hands out one part at a time, and with "
               "usecols=… "
               "the columns that are needed.";
    }
    if (has_list_comprehension(code))
        return "The list holds all items at once; where they are used once and in order, a generator, (…) "
               "for […], makes "
               "one at a time.";
    if (find_call(code, "sorted") != std::string::npos)
        return "sorted() makes a second list; where the first isn't needed any more, its sort() method needs "
               "no copy.";
    if (adds_to_string(code) && in_loop(line, line_of_file))
        return "+= may copy the whole string each time round; \"\".join() of a list of the pieces, or "
               "io.StringIO, copies "
               "each once.";
    return "";
}

}  // namespace memattach::profile
