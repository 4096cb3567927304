#include "memattach/session/memory_lens.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "memattach/base/clock.h"

namespace memattach::session {
namespace {

constexpr double kBytesPerMb = 1024 * 1024;

/// One note for each kind of allocation, however many processes it is true of.
std::vector<std::string> few_windows_notes(const std::vector<probe::AllocTracerStats>& parts) {
    struct Few {
        std::string what;
        std::uint64_t least = 0, most = 0, processes = 0;
    };
    std::vector<Few> kinds;
    for (const auto& part : parts) {
        for (const auto& [what, windows] : part.few_windows) {
            auto found =
                std::find_if(kinds.begin(), kinds.end(), [&](const Few& few) { return few.what == what; });
            if (found == kinds.end()) found = kinds.insert(kinds.end(), {what, windows, windows, 0});
            found->least = std::min(found->least, windows);
            found->most = std::max(found->most, windows);
            ++found->processes;
        }
    }
    std::vector<std::string> notes;
    for (const Few& few : kinds) {
        const std::string windows = few.least == few.most ? fmt::format("{}", few.most)
                                                          : fmt::format("{} to {}", few.least, few.most);
        notes.push_back(fmt::format(
            "{} were looked at in {} short window{} only{}: what was missed may be many times what is shown, "
            "whatever the ± says (a longer --duration or a larger --max-overhead gives more)",
            few.what, windows, few.most == 1 ? "" : "s",
            few.processes > 1 ? fmt::format(" in each of {} processes", few.processes) : ""));
    }
    return notes;
}

}  // namespace

MemoryLens::MemoryLens(int pid, const python::Runtime& runtime, const process::Memory& memory,
                       const Options& options, Recorder& recorder, Loop& loop, Events events)
    : recorder_(recorder), loop_(loop), events_(std::move(events)) {
    probe::AllocProbeOptions alloc;
    alloc.max_overhead = options.max_overhead_pct / 100;
    alloc.threshold_bytes = options.malloc_threshold_mb * kBytesPerMb;
    alloc.seed = base::monotonic_ns();
    tracer_ =
        std::make_unique<probe::AllocTracer>(pid, runtime, memory, recorder.functions(), alloc, *this, loop);
    loop_.add(*tracer_);
}

MemoryLens::~MemoryLens() {
    loop_.remove(*tracer_);
}

void MemoryLens::finish() {
    tracer_->finish();
}

MemoryLens::StackId MemoryLens::intern_stack(const trace::Stack& stack) {
    return static_cast<StackId>(recorder_.builder().intern(stack));
}

void MemoryLens::spread(std::span<PlacedWindow> windows) {
    if (windows.empty()) return;
    std::vector<profile::TimeShares::Place> places;
    for (const auto& [window, stack] : windows)
        places.push_back(
            {static_cast<profile::StackId>(stack), window.start_ns, static_cast<double>(window.span_own_ns)});
    const trace::Window& first = windows.front().window;
    recorder_.builder().spread(first.pid, first.kind, places);
    for (std::size_t i = 0; i < windows.size(); ++i) {
        trace::Window& window = windows[i].window;
        window.span_own_ns = std::max(static_cast<std::uint64_t>(places[i].span_ns), window.own_ns);
    }
}

void MemoryLens::add(const trace::Alloc& alloc, StackId stack) {
    recorder_.builder().add(alloc, static_cast<profile::Builder::StackId>(stack));
}

void MemoryLens::add(const trace::Free& free) {
    recorder_.builder().add(free);
}

void MemoryLens::add(const trace::Window& window) {
    recorder_.builder().add(window);
}

void MemoryLens::add(const trace::Unseen& unseen) {
    recorder_.builder().add(unseen);
}

void MemoryLens::add(const trace::LiveBlocks& blocks) {
    recorder_.builder().add(blocks);
}

void MemoryAccount::add(const probe::AllocTracerStats& stats) {
    parts_.push_back(stats);
}

void MemoryAccount::fill(profile::Session& session, double threshold_bytes) const {
    if (parts_.empty()) return;
    session.engine_alloc = "ptrace";
    session.threshold_bytes = threshold_bytes;
    // The shares are the target's own, which comes first; children have theirs in the same spirit.
    session.coverage_malloc = parts_.front().coverage_malloc;
    if (parts_.front().has_objects) session.coverage_object = parts_.front().coverage_object;
    if (parts_.front().large_from_bytes != 0) {
        session.coverage_large = parts_.front().coverage_large;
        session.large_from_bytes = parts_.front().large_from_bytes;
    }
    double run_s = 0;  // of all processes together: an idle parent's share says nothing of its children's
    for (const probe::AllocTracerStats& part : parts_) {
        session.stopped_s += part.stopped_s;
        if (part.overhead_pct > 0) run_s += part.stopped_s / (part.overhead_pct / 100);
        session.longest_stop_us = std::max(session.longest_stop_us, part.longest_stop_us);
        if (part.text_verified) {
            session.text_verified = session.text_verified.value_or(true) && *part.text_verified;
        }
        for (std::size_t i = 0; i < part.loss.counts.size(); ++i)
            session.loss.counts[i] += part.loss.counts[i];
        for (const std::string& note : part.notes) {
            if (std::find(session.notes.begin(), session.notes.end(), note) == session.notes.end()) {
                session.notes.push_back(note);
            }
        }
    }
    for (std::string& note : few_windows_notes(parts_)) session.notes.push_back(std::move(note));
    session.overhead_pct = run_s > 0 ? 100 * session.stopped_s / run_s : 0;
}

std::optional<std::uint64_t> MemoryAccount::unknown_frees() const {
    if (parts_.empty()) return std::nullopt;
    std::uint64_t sum = 0;
    for (const probe::AllocTracerStats& part : parts_) sum += part.unknown_frees;
    return sum;
}

}  // namespace memattach::session
