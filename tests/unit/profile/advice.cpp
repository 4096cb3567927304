#include "memattach/profile/advice.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace memattach;

namespace {

/// The advice for the last line that isn't indented behind it: the one marked with `>`.
std::string advice(std::vector<std::string> lines) {
    std::uint32_t marked = 0;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        if (lines[i].front() != '>') continue;
        lines[i].erase(0, 1);
        marked = static_cast<std::uint32_t>(i + 1);
    }
    return profile::memory_advice(marked, [&](std::uint32_t line) {
        return line == 0 || line > lines.size() ? std::string() : lines[line - 1];
    });
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("the patterns that a line's text gives away have advice") {
    CHECK(has(advice({">result = [self.transform(r) for r in records]"}), "generator"));
    CHECK(has(advice({">return sum([f(x)[0] for x in y if x])"}), "generator"));
    CHECK(has(advice({">    lines = f.readlines()  # all"}), "readlines()"));
    CHECK(has(advice({">df = pd.read_csv(filename)"}), "chunksize"));
    CHECK(has(advice({">df = pd.read_csv(", "    filename,", "    sep=';',", ")"}), "chunksize"));
    CHECK(has(advice({">data = sorted(filtered, key=lambda x: x['id'])"}), "sort()"));
    CHECK(has(advice({"for item in data:", ">    report += f\"{item['id']}\\n\""}), "join()"));
    CHECK(has(advice({"for x in y:", ">    out += x + '\\n'"}), "join()"));
    CHECK(has(advice({"while more():", "    if x:", ">        out += str(x)"}), "join()"));
}

TEST_CASE("others have none") {
    CHECK(advice({">result = (self.transform(r) for r in records)"}).empty());
    CHECK(advice({">x = table[key for_ in y]"}).empty());
    CHECK(advice({">x = rows[0]  # [a for a in b]"}).empty());
    CHECK(advice({">x = \"[a for a in b] .readlines() sorted(x)\""}).empty());
    CHECK(advice({">for chunk in pd.read_csv(filename, chunksize=1000):"}).empty());
    CHECK(advice({">df = pd.read_csv(", "    filename,", "    chunksize=n,", ")"}).empty());
    CHECK(advice({">df = pd.read_csv(filename, **options)"}).empty());
    CHECK(advice({">x = unsorted(y)"}).empty());
    CHECK(advice({">report += f\"{x}\""}).empty());  // not in a loop
    CHECK(advice({"for x in y:", "    def f():", ">        report += f\"{x}\""}).empty());
    CHECK(advice({"for x in y:", ">    total += x"}).empty());
    CHECK(advice({"for x in y:", ">    parts += [\"a\"]"}).empty());
    CHECK(advice({"for x in y:", ">    total += len(\"a\")"}).empty());
    CHECK(advice({">total = []"}).empty());
    CHECK(advice({">"}).empty());
}
