/// What it costs to read a Python stack out of a running process, without anything around it.
///
///     walk PID [SECONDS]      takes turns between single 8-byte reads and walks of every thread, and prints
///     ratios walk PID --dump         prints each thread's stack once
///
/// Figures of one run are comparable with each other only: the ratio to one small process_vm_readv of the
/// same run is what carries over to another machine.

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/process/memory.h"
#include "memattach/python/finder.h"
#include "memattach/python/reader.h"

using namespace memattach;

namespace {

double cpu_ns() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

void dump(const std::vector<python::ThreadState>& threads, python::StackReader& reader,
          python::CodeCache& codes, const trace::FunctionTable& functions) {
    for (const auto& thread : threads) {
        python::RawStack raw;
        trace::Stack stack;
        trace::LossCounts losses;
        const auto status = reader.walk(thread.address, raw);
        codes.resolve(raw, stack, losses);
        fmt::print("thread {} (interpreter {}): status {}, {} frames{}\n", thread.tid, thread.interpreter_id,
                   static_cast<int>(status), raw.frames.size(),
                   reader.gil_holder() == thread.address ? ", holds the GIL" : "");
        for (std::size_t i = 0; i < stack.size(); ++i) {
            const auto& function = functions.at(stack[i].function);
            fmt::print("  {} ({}:{}){}\n", base::printable(function.name), base::printable(function.file),
                       stack[i].line, i < raw.frames.size() && raw.frames[i].entry ? " <entry>" : "");
        }
    }
}

struct Totals {
    std::uint64_t walks = 0;
    std::uint64_t torn = 0;
    std::uint64_t unchanged = 0;
    std::uint64_t none = 0;
    std::uint64_t frames = 0;
};

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 2) base::throw_error("usage: walk PID [SECONDS | --dump]");
    const int pid = std::atoi(argv[1]);
    const process::LiveMemory memory(pid);
    const auto runtime = python::find_runtime(pid, memory);
    trace::FunctionTable functions;
    python::StackReader reader(memory, runtime, pid);
    python::CodeCache codes(memory, runtime, functions);
    const auto threads = reader.threads();
    if (threads.empty()) base::throw_error("process {} has no Python threads", pid);
    if (argc > 2 && std::strcmp(argv[2], "--dump") == 0) {
        dump(threads, reader, codes, functions);
        return 0;
    }
    const double seconds = argc > 2 ? std::atof(argv[2]) : 3;

    Totals totals;
    python::RawStack raw;
    trace::Stack stack;
    trace::LossCounts losses;
    double read_ns = 0;
    double walk_ns = 0;
    double resolve_ns = 0;
    double walk_elapsed_ns = 0;
    std::uint64_t reads = 0;
    std::map<trace::Stack, std::uint64_t> seen;
    const std::uint64_t end = base::monotonic_ns() + static_cast<std::uint64_t>(seconds * 1e9);
    // Blocks of each, turn by turn, so that what disturbs one disturbs the others.
    while (base::monotonic_ns() < end) {
        constexpr int kBlock = 500;
        double before = cpu_ns();
        for (int i = 0; i < kBlock; ++i) {
            reads += memory.read<std::uint64_t>(threads[0].address).has_value() ? 1 : 0;
        }
        read_ns += cpu_ns() - before;

        std::vector<python::RawStack> kept;
        const std::uint64_t began = base::monotonic_ns();
        before = cpu_ns();
        for (int i = 0; i < kBlock; ++i) {
            const auto status =
                reader.walk(threads[static_cast<std::size_t>(i) % threads.size()].address, raw);
            ++totals.walks;
            totals.torn += status == python::WalkStatus::torn ? 1 : 0;
            totals.none +=
                status == python::WalkStatus::no_frames || status == python::WalkStatus::gone ? 1 : 0;
            totals.unchanged += raw.unchanged ? 1 : 0;
            totals.frames += raw.frames.size();
            if (i % 10 == 0) kept.push_back(raw);
        }
        walk_ns += cpu_ns() - before;
        walk_elapsed_ns += static_cast<double>(base::monotonic_ns() - began);

        before = cpu_ns();
        for (const auto& one : kept) {
            for (int i = 0; i < 10; ++i) codes.resolve(one, stack, losses);
        }
        resolve_ns += cpu_ns() - before;
        for (const auto& one : kept) {
            codes.resolve(one, stack, losses);
            ++seen[stack];
        }
    }
    const auto walks = static_cast<double>(totals.walks);
    const double per_read = read_ns / static_cast<double>(std::max<std::uint64_t>(reads, 1));
    fmt::print("one 8-byte read         {:6.2f} us\n", per_read / 1e3);
    fmt::print("walk, {:5.1f} frames      {:6.2f} us   {:4.2f} reads' worth\n",
               static_cast<double>(totals.frames) / walks, walk_ns / walks / 1e3, walk_ns / walks / per_read);
    fmt::print("resolve                 {:6.2f} us   {:4.2f} reads' worth\n", resolve_ns / walks / 1e3,
               resolve_ns / walks / per_read);
    fmt::print("walks/s                 {:6.0f}\n", walks / walk_elapsed_ns * 1e9);
    fmt::print(
        "torn {:.3f} %, unchanged {:.1f} %, no frames {:.1f} %, unreadable {}, {} distinct "
        "stacks\n",
        100 * static_cast<double>(totals.torn) / walks, 100 * static_cast<double>(totals.unchanged) / walks,
        100 * static_cast<double>(totals.none) / walks, losses[trace::Loss::unreadable_stacks], seen.size());
    return 0;
} catch (const base::Error& error) {
    fmt::print(stderr, "walk: {}\n", error.what());
    return static_cast<int>(error.code());
}
