#include "frame_window.h"

#include <algorithm>

namespace memattach::python {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kMaxSlackBytes = 2048;

std::uint64_t page_of(std::uint64_t address) {
    return address / kPageBytes;
}

}  // namespace

void FrameWindow::plan(std::vector<std::uint64_t>& addresses, std::uint32_t bytes, std::uint64_t slack_from) {
    std::sort(addresses.begin(), addresses.end());
    spans_.clear();
    for (const std::uint64_t start : addresses) {
        const std::uint64_t end = start + bytes;
        if (end < start) continue;
        // Both pages hold frames, so what lies between them is mapped.
        if (!spans_.empty() && page_of(start) <= page_of(spans_.back().end - 1) + 1 &&
            start <= spans_.back().end + kPageBytes) {
            spans_.back().end = std::max(spans_.back().end, end);
        } else {
            spans_.push_back({start, end, 0});
        }
    }
    std::size_t total = 0;
    for (std::size_t i = 0; i < spans_.size(); ++i) {
        Span& span = spans_[i];
        if (slack_from >= span.start && slack_from <= span.end) {
            const std::uint64_t page_end = (page_of(span.end - 1) + 1) * kPageBytes;
            span.end = std::max(span.end, std::min(page_end, slack_from + kMaxSlackBytes));
        }
        span.at = total;
        total += span.end - span.start;
    }
    buffer_.resize(total);
}

void FrameWindow::clear() {
    spans_.clear();
    buffer_.clear();
}

void FrameWindow::append_pieces(std::vector<process::Memory::Piece>& pieces) {
    for (const Span& span : spans_) {
        pieces.push_back(
            {base::Address(span.start),
             std::span(buffer_).subspan(span.at, static_cast<std::size_t>(span.end - span.start))});
    }
}

const std::byte* FrameWindow::within(const Span& span, std::uint64_t address, std::uint32_t bytes) const {
    if (address < span.start || address >= span.end || span.end - address < bytes) return nullptr;
    return buffer_.data() + span.at + (address - span.start);
}

const std::byte* FrameWindow::find(std::uint64_t address, std::uint32_t bytes, std::size_t& hint) const {
    if (hint < spans_.size()) {
        if (const std::byte* found = within(spans_[hint], address, bytes)) return found;
    }
    const auto after = std::upper_bound(spans_.begin(), spans_.end(), address,
                                        [](std::uint64_t at, const Span& span) { return at < span.start; });
    if (after == spans_.begin()) return nullptr;
    const auto& span = *std::prev(after);
    hint = static_cast<std::size_t>(std::prev(after) - spans_.begin());
    return within(span, address, bytes);
}

}  // namespace memattach::python
