/// Whether stacks that are read while the target runs are those that it really has: takes turns between
/// stopping the thread and reading its stack, and reading it without a stop, and prints how often each pair
/// of innermost functions was met in either way. With fixtures/short_calls.py it shows what is unfair to
/// short calls.
///
///     fairness PID [SECONDS]
///
/// The process is traced meanwhile and stopped for some microseconds a few thousand times a second.

#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/memory.h"
#include "memattach/python/finder.h"
#include "memattach/python/reader.h"

using namespace memattach;

int main(int argc, char** argv) try {
    if (argc < 2) base::throw_error("usage: fairness PID [SECONDS]");
    const int pid = std::atoi(argv[1]);
    const double seconds = argc > 2 ? std::atof(argv[2]) : 5;
    const process::LiveMemory memory(pid);
    const auto runtime = python::find_runtime(pid, memory);
    trace::FunctionTable functions;
    python::StackReader stopped_reader(memory, runtime, pid);
    python::StackReader running_reader(memory, runtime, pid);
    python::CodeCache codes(memory, runtime, functions);
    const auto threads = running_reader.threads();
    const auto thread =
        std::find_if(threads.begin(), threads.end(), [&](const auto& t) { return t.tid == pid; });
    if (thread == threads.end()) base::throw_error("process {} has no Python main thread", pid);
    if (::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0)
        base::throw_error("process {} can't be traced", pid);

    enum Way : std::size_t { stopped, running };
    std::map<std::string, std::array<double, 2>> counts;
    double rounds = 0;
    double torn = 0;
    std::mt19937 random(1);
    python::RawStack raw;
    trace::Stack stack;
    trace::LossCounts losses;
    const std::uint64_t end = base::monotonic_ns() + static_cast<std::uint64_t>(seconds * 1e9);
    while (base::monotonic_ns() < end) {
        for (const Way way : {stopped, running}) {
            const std::uint64_t until = base::monotonic_ns() + 50'000 + random() % 300'000;
            while (base::monotonic_ns() < until) {
            }
            if (way == stopped) {
                ::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr);
                int status = 0;
                if (::waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) {
                    base::throw_error("process {} ended", pid);
                }
                (void)stopped_reader.walk(thread->address, raw, true);
                ::ptrace(PTRACE_CONT, pid, nullptr, nullptr);
            } else {
                torn += running_reader.walk(thread->address, raw) == python::WalkStatus::torn ? 1 : 0;
            }
            codes.resolve(raw, stack, losses);
            std::string names;
            for (std::size_t i = 0; i < stack.size() && i < 2; ++i) {
                names += fmt::format("{}{}", i == 0 ? "" : " < ", functions.at(stack[i].function).name);
            }
            ++counts[names][way];
        }
        ++rounds;
    }
    if (rounds == 0) return 1;
    fmt::print("{:.0f} stacks each way, torn {:.2f} %\nstopped  running  difference in standard errors\n",
               rounds, 100 * torn / rounds);
    std::vector<std::pair<std::string, std::array<double, 2>>> rows(counts.begin(), counts.end());
    std::sort(rows.begin(), rows.end(), [](const auto& x, const auto& y) {
        return x.second[stopped] + x.second[running] > y.second[stopped] + y.second[running];
    });
    for (const auto& [names, count] : rows) {
        const double p = count[stopped] / rounds;
        const double q = count[running] / rounds;
        const double error = std::sqrt((p * (1 - p) + q * (1 - q)) / rounds);
        fmt::print("{:6.2f} % {:6.2f} % {:6.1f}  {}\n", 100 * p, 100 * q, error > 0 ? (q - p) / error : 0,
                   base::printable(names));
    }
    return 0;
} catch (const base::Error& error) {
    fmt::print(stderr, "fairness: {}\n", error.what());
    return static_cast<int>(error.code());
}
