#include "memattach/probe/progress.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <span>

#include "memattach/base/bytes.h"

namespace memattach::probe {
namespace {

constexpr std::size_t kFrames = 6;
constexpr std::size_t kSlots = 24;
/// Words of an object behind its count and type: iterators, numbers and containers count in the first of
/// them.
constexpr std::size_t kFirstWord = 2;
constexpr std::size_t kWords = 6;

/// A word must have moved so many steps: fewer, and one step more or less is too much.
constexpr std::int64_t kLeastSteps = 12;
/// How much the speeds of the two undisturbed stretches may differ.
constexpr double kEvenness = 0.2;
constexpr std::int64_t kFarthest = std::int64_t{1} << 40;

std::int64_t moved(std::uint64_t from, std::uint64_t to) {
    return static_cast<std::int64_t>(to - from);
}

}  // namespace

void read_progress(const process::Memory& memory, const python::Layout& layout, base::Address state,
                   ProgressSnapshot& out) {
    out.words.clear();
    std::optional<base::Address> frame;
    if (layout.thread.frame != python::kAbsent) {
        frame = memory.read_address(state + layout.thread.frame);
    } else if (layout.thread.cframe != python::kAbsent) {
        const auto cframe = memory.read_address(state + layout.thread.cframe);
        if (cframe && !cframe->is_null()) frame = memory.read_address(*cframe + layout.cframe.current_frame);
    }
    const std::size_t slots_at = layout.frame.localsplus;
    if (layout.frame.localsplus == python::kAbsent || slots_at > 1024) return;
    std::vector<std::byte> bytes(slots_at + kSlots * 8);
    struct Slot {
        std::uint64_t place;
        base::Address object;
        std::array<std::uint64_t, kWords> words;
    };
    std::vector<Slot> slots;
    for (std::size_t depth = 0; depth < kFrames && frame && !frame->is_null(); ++depth) {
        if (!memory.read_exactly(*frame, bytes)) break;
        for (std::size_t i = 0; i < kSlots; ++i) {
            const auto value = *base::read_at<std::uint64_t>(bytes, slots_at + i * 8);
            const base::Address object(value & ~std::uint64_t{7});  // without a stackref's tag
            if (object.value() < 4096 || value >> 47 != 0) continue;
            // The frame's address tells apart what is in the same slot of different frames.
            slots.push_back({(frame->value() << 8) ^ (i << 3), object, {}});
        }
        const auto previous = base::read_at<std::uint64_t>(bytes, layout.frame.previous);
        frame = previous ? std::optional(base::Address(*previous)) : std::nullopt;
    }
    std::vector<process::Memory::Piece> pieces;
    pieces.reserve(slots.size());
    for (Slot& slot : slots)
        pieces.push_back({slot.object + 8 * kFirstWord, std::as_writable_bytes(std::span(slot.words))});
    std::size_t done = 0;
    while (done < pieces.size()) {
        // Slots may hold anything: those that lead nowhere are passed over one by one.
        const std::size_t got = memory.read_pieces(std::span(pieces).subspan(done));
        for (std::size_t i = done; i < done + got; ++i) {
            for (std::size_t w = 0; w < kWords; ++w)
                out.words.push_back({slots[i].place ^ w, slots[i].words[w]});
        }
        done += got + 1;
    }
    std::sort(out.words.begin(), out.words.end(),
              [](const ProgressWord& a, const ProgressWord& b) { return a.place < b.place; });
}

std::optional<OwnTime> own_time_between(const ProgressSnapshot& a, const ProgressSnapshot& b,
                                        const ProgressSnapshot& c, const ProgressSnapshot& d,
                                        const ProgressSnapshot& e, double most_ns) {
    if (b.cpu_ns <= a.cpu_ns || c.cpu_ns <= b.cpu_ns) return std::nullopt;
    const double ab_ns = static_cast<double>(b.cpu_ns - a.cpu_ns);
    const double bc_ns = static_cast<double>(c.cpu_ns - b.cpu_ns);
    std::vector<OwnTime> found;
    std::size_t ib = 0, ic = 0, id = 0, ie = 0;
    const auto same = [](const ProgressSnapshot& s, std::size_t& i, std::uint64_t place) {
        while (i < s.words.size() && s.words[i].place < place) ++i;
        return i < s.words.size() && s.words[i].place == place;
    };
    for (const ProgressWord& word : a.words) {
        if (!same(b, ib, word.place) || !same(c, ic, word.place) || !same(d, id, word.place) ||
            !same(e, ie, word.place))
            continue;
        const std::int64_t ab = moved(word.value, b.words[ib].value);
        const std::int64_t bc = moved(b.words[ib].value, c.words[ic].value);
        const std::int64_t de = moved(d.words[id].value, e.words[ie].value);
        if (ab == 0 || bc == 0 || de == 0 || (ab > 0) != (bc > 0) || (ab > 0) != (de > 0)) continue;
        if (std::abs(ab) > kFarthest || std::abs(bc) > kFarthest || std::abs(de) > kFarthest) continue;
        // Indices count by one, pointers that walk over an array of words by eight.
        const std::int64_t step = std::gcd(std::gcd(ab, bc), de) % 8 == 0 ? 8 : 1;
        if (std::abs(de) / step < kLeastSteps || std::abs(ab) / step < kLeastSteps ||
            std::abs(bc) / step < kLeastSteps)
            continue;
        const double speed_ab = static_cast<double>(std::abs(ab)) / ab_ns;
        const double speed_bc = static_cast<double>(std::abs(bc)) / bc_ns;
        const double speed = static_cast<double>(std::abs(ab + bc)) / (ab_ns + bc_ns);
        if (std::abs(speed_ab - speed_bc) > kEvenness * speed) continue;
        const double own = static_cast<double>(std::abs(de)) / speed;
        if (own > most_ns) continue;
        const double unevenness = std::abs(speed_ab - speed_bc) / speed / 2;
        const double grain = 0.6 * static_cast<double>(step) / static_cast<double>(std::abs(de));
        found.push_back({own, std::hypot(unevenness, grain)});
    }
    if (found.empty()) return std::nullopt;
    std::sort(found.begin(), found.end(),
              [](const OwnTime& x, const OwnTime& y) { return x.relative_sd < y.relative_sd; });
    // The best ones agree where they count the same loop; their middle is safe against one that doesn't.
    std::size_t good = 1;
    while (good < found.size() && good < 5 && found[good].relative_sd < 1.5 * found.front().relative_sd)
        ++good;
    std::sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(good),
              [](const OwnTime& x, const OwnTime& y) { return x.own_ns < y.own_ns; });
    return found[good / 2];
}

}  // namespace memattach::probe
