#include <algorithm>

#include "memattach/base/clock.h"
#include "memattach/probe/alloc_probe.h"

namespace memattach::probe {
namespace {

/// Older blocks of a window will live on for a while.
constexpr std::uint64_t kYoungNs = 10'000'000;
constexpr std::uint64_t kTailNs = 10'000'000;
constexpr std::uint32_t kMostHits = 24, kMostLargeHits = 8;
constexpr std::size_t kMostContents = 64;

}  // namespace

/// The caller arms what is to be armed then.
void AllocProbe::begin_tail(trace::AllocKind kind, std::uint64_t now_ns) {
    Tail& tail = tail_of(kind);
    std::erase_if(tail.blocks, [&](const auto& block) {
        return live_.count(block.first) == 0 || block.second + kYoungNs < now_ns;
    });
    tail.until_ns = tail.blocks.empty() ? 0 : now_ns + kTailNs;
    tail.hits_left = kind == trace::AllocKind::large ? kMostLargeHits : kMostHits;
}

void AllocProbe::on_tail_hit(const Site& site, pid_t tid, const user_regs_struct& regs) {
    if (!has_tail(site.group) || site.args.old == Argument::none) return;
    tail_block_ends(site.group, tid, argument(site.args.old, regs));
}

void AllocProbe::tail_block_ends(trace::AllocKind kind, pid_t tid, std::uint64_t block) {
    Tail& tail = tail_of(kind);
    if (!tail.is_watched()) return;
    if (tail.blocks.erase(block) != 0) release(tid, block, 0);
    if (tail.hits_left > 0) --tail.hits_left;
    if (tail.blocks.empty() || tail.hits_left == 0) end_tail(kind);
}

/// What is left is known to live now, and its content to be its own.
void AllocProbe::end_tail(trace::AllocKind kind) {
    Tail& tail = tail_of(kind);
    tail.until_ns = 0;
    if (!plan_.of(kind).armed) set_armed(kind, Armed::nothing);
    std::vector<TraceEvent> told;
    for (const auto& [block, birth_ns] : tail.blocks) {
        const auto size = live_.find(block);
        if (size == live_.end() || told.size() >= kMostContents) continue;
        TraceEvent& event = told.emplace_back();
        event.type = TraceEventType::content;
        event.kind = kind;
        event.window = tail.window;
        event.address = block;
        event.time_ns = base::monotonic_ns();
        event.content.count = BlockContent::words_of(size->second);
        event.content.settled = 1;
    }
    tail.blocks.clear();
    std::vector<process::Memory::Piece> pieces;
    for (TraceEvent& event : told) {
        const auto words = std::as_writable_bytes(std::span(event.content.words));
        pieces.push_back({base::Address(event.address), words.first(8 * event.content.count)});
    }
    const std::size_t arrived = memory_.read_pieces(pieces);
    for (std::size_t i = 0; i < arrived; ++i) send(told[i], {});
}

void AllocProbe::end_tails(std::uint64_t now_ns) {
    for (const auto kind : kKinds) {
        if (tail_of(kind).is_watched() && now_ns >= tail_of(kind).until_ns) end_tail(kind);
    }
}

}  // namespace memattach::probe
