/// read_stacks PID: for each line on standard input, prints one line of JSON: all threads of process PID with
/// the stacks that they have at this moment, read while it runs. Ends with its input.

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "memattach/base/error.h"
#include "memattach/process/memory.h"
#include "memattach/python/finder.h"
#include "memattach/python/reader.h"

using namespace memattach;

namespace {

const char* name_of(python::WalkStatus status) {
    switch (status) {
        case python::WalkStatus::consistent:
            return "consistent";
        case python::WalkStatus::torn:
            return "torn";
        case python::WalkStatus::no_frames:
            return "no frames";
        case python::WalkStatus::gone:
            return "gone";
    }
    return "?";
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 2) base::throw_error("usage: read_stacks PID");
    const int pid = std::atoi(argv[1]);
    const process::LiveMemory memory(pid);
    const auto runtime = python::find_runtime(pid, memory);
    trace::FunctionTable functions;
    python::StackReader reader(memory, runtime, pid);
    // Asked in quick succession: code objects that were freed in between are to be noticed every time.
    python::CodeCache codes(memory, runtime, functions, {.trust_changed_ns = 0, .trust_unchanged_ns = 0});
    python::RawStack raw;
    trace::Stack stack;
    trace::LossCounts losses;
    for (std::string line; std::getline(std::cin, line);) {
        auto threads = nlohmann::json::array();
        for (const auto& thread : reader.threads()) {
            const auto status = reader.walk(thread.address, raw);
            const bool holds_gil = reader.gil_holder() == thread.address;
            codes.resolve(raw, stack, losses);
            auto frames = nlohmann::json::array();
            for (const auto& frame : stack) {
                const auto& function = functions.at(frame.function);
                frames.push_back({function.name, function.file, frame.line});
            }
            std::size_t entries = 0;
            for (const auto& frame : raw.frames) entries += frame.entry ? 1 : 0;
            threads.push_back({{"tid", thread.tid},
                               {"interpreter", thread.interpreter_id},
                               {"status", name_of(status)},
                               {"holds_gil", holds_gil},
                               {"truncated", raw.truncated},
                               {"broken", raw.broken},
                               {"unchanged", raw.unchanged},
                               {"entries", entries},
                               {"frames", std::move(frames)}});
        }
        const nlohmann::json answer = {{"threads", std::move(threads)}, {"finalising", reader.finalising()}};
        std::cout << answer.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
    }
    return 0;
} catch (const base::Error& error) {
    fmt::print(stderr, "read_stacks: {}\n", error.what());
    return static_cast<int>(error.code());
}
