#include "thread_walk.h"

#include <algorithm>
#include <cstring>

#include "memattach/base/error.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxTries = 4;
constexpr std::size_t kMaxPlans = 6;
constexpr std::size_t kMaxReads = 16;
/// An eval loop that is entered or left so often while it is looked at will go on so.
constexpr std::size_t kMaxEntered = 3;
/// Shims come on top of the frames that count.
constexpr std::size_t kMaxChain = 2 * trace::kMaxStackDepth + 2;
constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kReplanEveryWalks = 128;
/// How many of the innermost frames are looked at twice: the first three in any case, further ones and those
/// of recent calls where they lie this near, so that they come with the same piece; two far ones, a piece
/// each; all that are remembered once a walk had to look for the frame of a call a second time, as with 3.8
/// and 3.9, where each function has a frame at a place of its own (co_zombieframe).
constexpr std::size_t kMaxAgain = 6;
constexpr std::size_t kAlwaysAgain = 3;
constexpr std::size_t kMaxFarAgain = 2;
constexpr std::uint64_t kNearBytes = 1536;

template <typename T>
T load(const std::byte* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

bool can_be_pointer(std::uint64_t value) {
    return value != 0 && (value & 7U) == 0;
}

}  // namespace

ThreadShape::ThreadShape(const Layout& layout)
    : interpreter_(layout.thread.interp),
      thread_id_(layout.thread.thread_id),
      native_thread_id_(layout.thread.native_thread_id),
      frame_(layout.thread.cframe != kAbsent ? layout.thread.cframe : layout.thread.frame),
      has_cframe_(layout.thread.cframe != kAbsent),
      cframe_current_(layout.cframe.current_frame) {
    if (frame_ == kAbsent || (has_cframe_ && cframe_current_ == kAbsent)) {
        base::throw_error("the layout for this Python doesn't say where a thread keeps its current frame");
    }
    begin_ = frame_;
    end_ = frame_ + 8;
    constexpr std::uint32_t kMaxHeadBytes = 1024;
    for (Offset* offset : {&interpreter_, &thread_id_, &native_thread_id_}) {
        if (*offset == kAbsent) continue;
        const std::uint32_t first = std::min(begin_, *offset);
        const std::uint32_t last = std::max(end_, *offset + 8);
        if (last - first > kMaxHeadBytes) {
            *offset = kAbsent;
            continue;
        }
        begin_ = first;
        end_ = last;
    }
    for (Offset* offset : {&interpreter_, &thread_id_, &native_thread_id_, &frame_}) {
        if (*offset != kAbsent) *offset -= begin_;
    }
}

ThreadShape::Head ThreadShape::parse(const std::byte* bytes) const {
    const auto word = [&](Offset offset) {
        return offset == kAbsent ? 0 : load<std::uint64_t>(bytes + offset);
    };
    return {word(interpreter_), word(thread_id_), word(native_thread_id_), word(frame_)};
}

WalkContext::WalkContext(const process::Memory& memory_in, const Runtime& runtime)
    : memory(memory_in),
      frames(runtime.layout),
      threads(runtime.layout),
      code_bytecode(runtime.layout.code.bytecode == kAbsent ? 0 : runtime.layout.code.bytecode) {}

void ThreadWalk::remember_top(std::uint64_t top) {
    RecentTop* oldest = recent_tops_.data();
    for (RecentTop& recent : recent_tops_) {
        if (recent.address == top) {
            recent.walk = walks_;
            return;
        }
        if (recent.walk < oldest->walk) oldest = &recent;
    }
    *oldest = {top, walks_};
}

void ThreadWalk::plan(const WalkContext& context, std::uint64_t top, bool widely) {
    planned_chain_ = chain_;
    addresses_.clear();
    const std::uint32_t begin = context.frames.begin();
    for (const std::uint64_t address : chain_) addresses_.push_back(address + begin);
    if (!whole_.empty() && (chain_.empty() || chain_.back() != whole_.back().address))
        for (const Place& place : whole_) addresses_.push_back(place.address + begin);
    for (const RecentTop& recent : recent_tops_) {
        if (recent.address != 0 && walks_ - recent.walk < 2 * kReplanEveryWalks) {
            addresses_.push_back(recent.address + begin);
        }
    }
    const std::uint64_t slack_from = top + begin + context.frames.bytes();
    window_.plan(addresses_, context.frames.bytes(), slack_from);

    // Looked at twice: the innermost ones, and where frames inside and beside of them were lately.
    planned_top_ = top;
    again_addresses_.clear();
    const auto near = [top](std::uint64_t address) {
        return (top > address ? top - address : address - top) <= kNearBytes;
    };
    for (std::size_t i = 0; i < chain_.size() && i < kMaxAgain; ++i) {
        if (i < kAlwaysAgain || near(chain_[i])) again_addresses_.push_back(chain_[i]);
    }
    std::size_t far = 0;
    for (const RecentTop& recent : recent_tops_) {
        if (recent.address == 0 || walks_ - recent.walk >= 2 * kReplanEveryWalks) continue;
        if (std::find(again_addresses_.begin(), again_addresses_.end(), recent.address) !=
            again_addresses_.end()) {
            continue;
        }
        if (near(recent.address) || ++far <= kMaxFarAgain || widely)
            again_addresses_.push_back(recent.address);
    }
    addresses_.clear();
    for (const std::uint64_t address : again_addresses_) addresses_.push_back(address + begin);
    again_.plan(addresses_, context.frames.bytes(), slack_from);
}

/// One system call: all frames, the current-frame word, the innermost frames again, the GIL's holder, and
/// what the caller wants to know besides.
bool ThreadWalk::read(const WalkContext& context, const std::optional<GilPlace>& gil, ReadAlong* along,
                      bool stopped) {
    pieces_.clear();
    window_.append_pieces(pieces_);
    const std::size_t head_index = pieces_.size();
    const std::uint32_t head_size = context.threads.bytes();
    const std::uint32_t gil_size = gil ? gil->bytes : 0;
    head_bytes_.resize(head_size + 8 + gil_size);
    const std::span<std::byte> bytes(head_bytes_);
    pieces_.push_back({thread_state_ + context.threads.begin(), bytes.first(head_size)});
    const bool with_cframe = context.threads.has_cframe() && cframe_ != 0;
    if (with_cframe) {
        pieces_.push_back(
            {base::Address(cframe_ + context.threads.cframe_current()), bytes.subspan(head_size, 8)});
    }
    const std::size_t needed = pieces_.size();
    if (!stopped) again_.append_pieces(pieces_);
    if (gil) pieces_.push_back({gil->address, bytes.subspan(head_size + 8, gil_size)});
    const std::size_t own = pieces_.size();
    if (along != nullptr) pieces_.push_back(along->piece);

    const std::size_t arrived = context.memory.read_pieces(pieces_);
    if (along != nullptr) along->arrived = arrived > own;
    head_arrived_ = arrived > head_index;
    if (!head_arrived_) return false;
    head_ = context.threads.parse(head_bytes_.data());
    if (arrived < needed) return false;
    if (!context.threads.has_cframe()) {
        word_ = head_.frame;
    } else {
        word_ = with_cframe ? load<std::uint64_t>(head_bytes_.data() + head_size) : 0;
    }
    holder_.reset();
    if (gil && arrived >= own) {
        const std::byte* place = head_bytes_.data() + head_size + 8;
        const auto holder = load<std::uint64_t>(place + gil->holder);
        const bool locked = gil->locked == kAbsent || load<std::int32_t>(place + gil->locked) == 1;
        if (holder != 0 && locked) holder_ = base::Address(holder);
    }
    return arrived >= needed + (stopped ? 0 : again_.piece_count());
}

/// False where there can't be such a frame.
bool ThreadWalk::add_frame(const WalkContext& context, const FrameHeader& header, RawStack& out) {
    const FrameShape& shape = context.frames;
    if (header.shim) {
        if (!out.frames.empty() && !shape.has_entry_flag()) out.frames.back().entry = true;
        return true;
    }
    const bool all_enter = !shape.has_entry_flag() && !shape.has_shims();
    RawFrame frame{base::Address(header.code), -1, all_enter || header.is_entry};
    if (!can_be_pointer(header.code)) return false;
    if (shape.has_bytecode_copies()) copies_.push_back({header.tlbc_index, header.instr});
    if ((!shape.has_bytecode_copies() || header.tlbc_index == 0) &&
        !shape.instr_offset(header.instr, header.code + context.code_bytecode, frame.instr_offset))
        return false;
    out.frames.push_back(frame);
    return true;
}

/// Follows the links from `top` on within what was read: in the first look, or in the second one as far as
/// the first frame that is the same in both, and from there on in the first.
ThreadWalk::Chain ThreadWalk::follow(const WalkContext& context, std::uint64_t top, Looks looks,
                                     RawStack& out) {
    const FrameShape& shape = context.frames;
    out.frames.clear();
    out.truncated = out.broken = false;
    chain_.clear();
    instrs_.clear();
    copies_.clear();
    is_cut_ = false;
    std::size_t hint = 0;
    std::size_t hint_again = 0;
    std::uint64_t mark = 0;  // Brent: an earlier address to meet again in a cycle
    std::size_t next_mark = 8;
    for (std::uint64_t address = top; address != 0;) {
        if (!can_be_pointer(address)) return Chain::senseless;
        if (out.frames.size() == trace::kMaxStackDepth || chain_.size() == kMaxChain) {
            out.truncated = true;
            break;
        }
        const std::byte* bytes = window_.find(address + shape.begin(), shape.bytes(), hint);
        FrameHeader header;
        if (looks == Looks::second) {
            const auto again = seen_again(context, address, hint_again);
            if (!again) return Chain::unanchored;
            header = *again;
            if (bytes != nullptr && shape.parse(bytes) == header) looks = Looks::first;
        } else {
            if (bytes == nullptr) return Chain::missing;
            header = shape.parse(bytes);
        }
        if (header.previous == address || address == mark) return Chain::senseless;
        chain_.push_back(address);
        instrs_.push_back(header.instr);
        is_cut_ = header.previous == 0 && (header.is_generator || header.activity == Activity::left);
        if (chain_.size() == next_mark) {
            mark = address;
            next_mark *= 2;
        }
        if (!add_frame(context, header, out)) return Chain::senseless;
        address = header.previous;
    }
    if (!out.truncated && !out.frames.empty()) out.frames.back().entry = true;
    return Chain::complete;
}

/// Finds the addresses of a chain that isn't within the window, page by page, into chain_. What it reads on
/// the way is not used for anything else. With `to_known`, from a frame on that was planned for the rest is
/// taken to be where it was: the thread runs on meanwhile, and reading all of a long chain can take longer
/// than the call whose frame is looked for. False where not even `top` can be read.
bool ThreadWalk::discover(const WalkContext& context, std::uint64_t top, bool to_known) {
    const FrameShape& shape = context.frames;
    std::array<std::byte, 2 * kPageBytes> page;
    std::uint64_t start = 0;
    std::uint64_t end = 0;
    chain_.clear();
    for (std::uint64_t address = top; can_be_pointer(address) && chain_.size() < kMaxChain;) {
        const std::uint64_t from = address + shape.begin();
        const std::uint64_t to = from + shape.bytes();
        if (to < from) break;
        if (to_known) {
            const auto known = std::find(planned_chain_.begin(), planned_chain_.end(), address);
            if (known != planned_chain_.end()) {
                chain_.insert(chain_.end(), known, planned_chain_.end());
                break;
            }
        }
        if (from < start || to > end) {
            start = from / kPageBytes * kPageBytes;
            const std::uint64_t wanted = ((to - 1) / kPageBytes + 1) * kPageBytes - start;
            end = start + context.memory.read_up_to(base::Address(start),
                                                    std::span(page).first(static_cast<std::size_t>(wanted)));
            if (to > end) {
                // A fake or a hole may begin in mid-page: the frame alone.
                start = from;
                end = from +
                      context.memory.read_up_to(base::Address(from), std::span(page).first(shape.bytes()));
                if (to > end) break;
            }
        }
        chain_.push_back(address);
        const FrameHeader header = shape.parse(page.data() + (from - start));
        if (header.previous == address) break;
        address = header.previous;
    }
    return !chain_.empty();
}

std::optional<FrameHeader> ThreadWalk::seen_again(const WalkContext& context, std::uint64_t address,
                                                  std::size_t& hint) const {
    const FrameShape& shape = context.frames;
    const std::byte* bytes = again_.find(address + shape.begin(), shape.bytes(), hint);
    if (bytes == nullptr) return std::nullopt;
    return shape.parse(bytes);
}

/// Which frame was the innermost one at the moment of the second look, as the frames themselves tell. The
/// current-frame word was read a third of a microsecond before, and calls can be shorter than that.
std::optional<std::uint64_t> ThreadWalk::innermost_at_second_look(const WalkContext& context) const {
    struct Seen {
        std::uint64_t address;
        FrameHeader header;
    };
    std::array<Seen, kMaxAgain + kMaxRecentTops + 1> seen;
    std::size_t count = 0;
    std::size_t hint = 0;
    const auto look = [&](std::uint64_t address) {
        const auto header = seen_again(context, address, hint);
        if (header) seen[count++] = {address, *header};
    };
    look(word_);
    if (count == 0 || seen[0].header.shim) return std::nullopt;
    for (const std::uint64_t address : again_addresses_) {
        if (address != word_) look(address);
    }
    const auto runs = [](const Seen& frame) {
        return !frame.header.shim && frame.header.activity >= Activity::live;
    };
    const auto has_caller_of = [&](std::uint64_t address) {
        return std::any_of(seen.begin(), seen.begin() + count, [&](const Seen& other) {
            return runs(other) && other.header.previous == address;
        });
    };
    if (runs(seen[0]) && !has_caller_of(word_)) return word_;
    // It has called another or has returned: whichever of its nearest relations is innermost now.
    const std::uint64_t caller = seen[0].header.previous;
    std::optional<std::uint64_t> innermost;
    for (std::size_t i = 1; i < count; ++i) {
        const Seen& frame = seen[i];
        if (!runs(frame) || has_caller_of(frame.address)) continue;
        const bool related = frame.header.previous == word_ || frame.address == caller ||
                             (caller != 0 && frame.header.previous == caller) || caller == 0;
        if (!related) continue;
        if (innermost) return std::nullopt;
        innermost = frame.address;
    }
    return innermost;
}

/// `address`, or where the first look found that frame to have been left: the nearest one outside of it that
/// wasn't.
std::uint64_t ThreadWalk::nearest_not_left(const WalkContext& context, std::uint64_t address) const {
    const FrameShape& shape = context.frames;
    std::size_t hint = 0;
    for (std::size_t i = 0; i < kMaxAgain; ++i) {
        const std::byte* bytes = window_.find(address + shape.begin(), shape.bytes(), hint);
        if (bytes == nullptr) return address;
        const FrameHeader header = shape.parse(bytes);
        if (header.shim || header.activity != Activity::left || header.previous == 0) return address;
        address = header.previous;
    }
    return address;
}

/// Whether the frame that the word named, and its caller, were the same in both looks, and where they were.
/// For frames that don't tell whether they run: this one did, in between.
bool ThreadWalk::stood_still(const WalkContext& context, std::uint64_t top) const {
    const FrameShape& shape = context.frames;
    std::size_t hint = 0;
    std::size_t hint_again = 0;
    for (std::uint64_t address = top, depth = 0; address != 0 && depth < 2; ++depth) {
        const std::byte* bytes = window_.find(address + shape.begin(), shape.bytes(), hint);
        const auto after = seen_again(context, address, hint_again);
        if (bytes == nullptr || !after) return false;
        FrameHeader before = shape.parse(bytes);
        // The innermost frame's own instruction moves all the time; its caller's stands still.
        if (depth == 0) before.instr = after->instr;
        if (before != *after) return false;
        address = before.previous;
    }
    return true;
}

WalkStatus ThreadWalk::walk(const WalkContext& context, const std::optional<GilPlace>& gil, ReadAlong* along,
                            RawStack& out, bool stopped, std::optional<base::Address>& gil_holder) {
    gil_holder.reset();
    ++walks_;
    std::size_t tries = 0;
    std::size_t plans = 0;
    std::size_t entered = 0;
    bool torn = false;  // `out` holds a first look that is good for want of a better one
    bool torn_is_whole = false;
    Chain chain = Chain::missing;
    for (std::size_t reads = 0; reads < kMaxReads && tries < kMaxTries; ++reads) {
        if (!read(context, gil, along, stopped)) {
            // Memory that held frames is gone: start from the thread state alone.
            if (window_.piece_count() == 0 && cframe_ == 0) return WalkStatus::gone;
            forget_places();
            continue;
        }
        if (!identity_) identity_ = head_;
        if (!head_.same_thread(*identity_)) {
            forget_places();
            identity_.reset();
            return WalkStatus::gone;
        }
        if (context.threads.has_cframe() && head_.frame != cframe_) {
            // The eval loop was entered or left since.
            cframe_ = head_.frame;
            if (cframe_ == 0) return WalkStatus::no_frames;
            if (++entered > kMaxEntered) ++tries;
            continue;
        }
        if (reads == 0 || !gil_holder) gil_holder = holder_;
        if (word_ == 0) return WalkStatus::no_frames;

        std::uint64_t top = word_;
        RawStack& into = torn ? spare_ : out;
        bool sure = stopped;
        if (stopped) {
            chain = follow(context, top, Looks::first, into);
        } else if (const auto innermost = innermost_at_second_look(context)) {
            top = *innermost;
            sure = true;
            chain = follow(context, top, Looks::second, into);
        } else {
            sure = stood_still(context, top);
            chain = follow(context, top, Looks::first, into);
        }
        if (is_cut_ && !stopped && !whole_.empty()) sure = false;
        if (chain == Chain::complete && sure) {
            if (!is_cut_) remember_whole();
            if (torn) std::swap(out, spare_);
            torn = false;
            if (top != planned_top_) remember_top(top);
            if (walks_ % kReplanEveryWalks == 0) plan(context, top);
            break;
        }
        if (!torn && chain != Chain::missing && !stopped) {
            // For want of anything better.
            torn = chain == Chain::complete ||
                   follow(context, nearest_not_left(context, word_), Looks::first, out) == Chain::complete;
            torn_is_whole = !is_cut_;
        }
        const bool known_place = chain != Chain::missing && planned_top_ == word_;
        if (!known_place && plans < kMaxPlans) {
            // Frames where none were before: look for them there the next time.
            ++plans;
            // What was planned for may be another call's of the same function: now and then all is read.
            const bool to_known = plans % 3 != 0;
            if (chain == Chain::complete || discover(context, word_, to_known)) {
                remember_top(word_);
                plan(context, word_, plans > 1);
                continue;
            }
        }
        ++tries;
    }
    if (chain == Chain::complete && !torn)
        return out.frames.empty() ? WalkStatus::no_frames : WalkStatus::consistent;
    if (torn && torn_is_whole) return WalkStatus::torn;
    if (!stopped && graft(context, out)) return WalkStatus::torn;
    if (torn) return WalkStatus::torn;
    if (chain != Chain::complete) out.broken = true;
    if (out.frames.empty() && !out.broken) return WalkStatus::no_frames;
    return stopped || chain == Chain::complete ? WalkStatus::consistent : WalkStatus::torn;
}

void ThreadWalk::forget_places() {
    window_.clear();
    again_.clear();
    chain_.clear();
    planned_chain_.clear();
    whole_.clear();
    again_addresses_.clear();
    planned_top_ = 0;
    recent_tops_ = {};
    cframe_ = 0;
}

void ThreadWalk::compare_with_last(RawStack& out) {
    std::size_t same = 0;
    const std::size_t most = std::min(out.frames.size(), last_.frames.size());
    if (!out.truncated && !last_.truncated) {
        while (same < most &&
               out.frames[out.frames.size() - 1 - same] == last_.frames[last_.frames.size() - 1 - same]) {
            ++same;
        }
    } else if (out.frames == last_.frames) {
        same = most;
    }
    out.unchanged_frames = static_cast<std::uint32_t>(same);
    out.unchanged = same == out.frames.size() && same == last_.frames.size() &&
                    out.truncated == last_.truncated && out.broken == last_.broken;
    if (!out.unchanged) {
        last_.frames = out.frames;
        last_.truncated = out.truncated;
        last_.broken = out.broken;
    }
}

}  // namespace memattach::python
