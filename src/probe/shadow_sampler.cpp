#include "shadow_sampler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/probe/large_entry.h"

namespace memattach::probe {
namespace {

/// So many allocations of a group are looked at one by one, which takes 0.1 ms of this processor each: in a
/// window what has been saved, of a few windows in a second or of windows that met nothing. In a program that
/// rests, or computes between bursts of allocations, it is a few windows that tell.
constexpr double kSamplesPerNs = 200e-9, kLeastSamples = 8, kMostSamples = 384;
/// Larger ones are all looked at: they are few, and the bytes are theirs.
constexpr std::uint64_t kBigBytes = 32 * 1024;
/// A window may take so long to be looked at, and so much longer for each sample.
constexpr std::uint64_t kLongestNs = 10'000'000;
constexpr double kLongestSampleNs = 200'000;
constexpr std::size_t kMostEvents = 1024;
/// When the window is over the shadow goes on for so long, to see the end of what was just in use.
constexpr double kGoOnShare = 2;
constexpr std::uint64_t kGoOnNs = 100'000;
/// A block that is older than this has been filled by who asked for it, or is being filled bit by bit.
std::uint64_t settles_after_ns(std::uint64_t size_bytes) {
    constexpr std::uint64_t kStartNs = 1'000, kByteNs = 20, kMostNs = 20'000;
    return std::min(kStartNs + kByteNs * std::min(size_bytes, kMostNs), kMostNs);
}
constexpr std::uint64_t kPageBytes = ShadowShared::kPageBytes;
constexpr std::uint64_t kMostHeldBytes = 16 * kPageBytes;

/// The R (trace::Alloc::sampling_bytes) with which a block of `size_bytes` is kept with `probability`.
double sampling_bytes(std::uint64_t size_bytes, double probability) {
    const auto size = static_cast<double>(std::max<std::uint64_t>(size_bytes, 1));
    return probability >= 1 ? size / 50 : -size / std::log1p(-probability);
}

std::size_t place_of(std::uint64_t block) {
    return block / 16 % ShadowCounters::kWatched;
}

}  // namespace

std::size_t ShadowMemory::read_up_to(base::Address from, std::span<std::byte> out) const {
    if (is_held_) {
        // Counted: behind a torn pointer into the last page comes address 0, and all the rest.
        const std::uint64_t offset = from.value() % kPageBytes;
        const std::uint64_t pages = (offset + out.size() + kPageBytes - 1) / kPageBytes;
        for (std::uint64_t i = 0; i < pages && out.size() < kMostHeldBytes; ++i) {
            const std::uint64_t page = from.value() - offset + i * kPageBytes;
            const auto [kept, is_new] = held_.try_emplace(page);
            if (is_new && !target_.read_exactly(base::Address(page), kept->second)) held_.erase(kept);
        }
    } else if (shadow_) {
        // What the shadow has is newer than what was kept, page by page.
        const std::size_t got = shadow_->read_up_to(from, out);
        if (got == out.size()) return got;
        const std::size_t to_next = kPageBytes - from.value() % kPageBytes;
        if (out.size() > to_next) {
            const std::size_t first = read_up_to(from, out.first(to_next));
            return first < to_next ? first : first + read_up_to(from + to_next, out.subspan(to_next));
        }
    }
    return copy_held(from.value(), out) ? out.size() : target_.read_up_to(from, out);
}

bool ShadowMemory::copy_held(std::uint64_t from, std::span<std::byte> out) const {
    while (!out.empty()) {
        const std::uint64_t offset = from % kPageBytes;
        const auto page = held_.find(from - offset);
        if (page == held_.end()) return false;
        const std::size_t count = std::min<std::size_t>(out.size(), kPageBytes - offset);
        std::copy_n(page->second.begin() + static_cast<std::ptrdiff_t>(offset), count, out.begin());
        out = out.subspan(count);
        from += count;
    }
    return true;
}

ShadowSampler::ShadowSampler(pid_t target, const process::Memory& memory, const python::Runtime& runtime,
                             const SiteMap& map, std::span<const PlannedSite> sites, ShadowCounters& counters)
    : map_(map),
      sites_(sites),
      counters_(counters),
      memory_(memory),
      reader_(memory_, runtime, target),
      thread_states_(memory_, runtime, reader_) {}

double ShadowSampler::hits(std::size_t group, bool allocating_only) const {
    double sum = 0;
    for (std::size_t i = 0; i < sites_.size(); ++i) {
        if (group_of(sites_[i].site.group) != group || (allocating_only && sites_[i].site.is_release()))
            continue;
        sum += static_cast<double>(counters_.hits[i]);
    }
    return sum;
}

std::uint64_t ShadowSampler::present_ns() const {
    return static_cast<std::uint64_t>(start_ns_ + per_hit_ns_ * hits(group_));
}

/// Each hit stops with the same probability, whatever the others did.
void ShadowSampler::draw(std::size_t group) {
    counters_.countdown[group] =
        every_ <= 1 ? 1 : 1 + std::geometric_distribution<std::uint64_t>(1 / every_)(random_);
}

void ShadowSampler::run(ShadowSpace& space, ShadowPages& pages, const ShadowWindow& window, pid_t tid,
                        double own_ns, double hits, double allocations) {
    window_ = window;
    group_ = group_of(window.group);
    tid_ = tid;
    const std::uint64_t start_ns = base::monotonic_ns();
    Savings& saved = saved_[group_];
    const auto passed_ns = static_cast<double>(start_ns - std::exchange(saved.at_ns, start_ns));
    const double spare = std::clamp(saved.samples + kSamplesPerNs * passed_ns, kLeastSamples, kMostSamples);
    every_ = std::max(1.0, allocations / spare);
    saved.samples = spare - std::min(allocations, spare);
    start_ns_ = static_cast<double>(window.start_wall_ns);
    per_hit_ns_ = own_ns / std::max(hits, 1.0);
    call_.reset();
    live_.clear();
    events_.clear();
    samples_ = 0;
    is_over_ = false;
    bytes_ = 0;
    memory_.set_shadow(space.pid());
    draw(group_);
    counters_.countdown[1 - group_] = ShadowCounters::kNever;
    counters_.big_bytes = group_ == 0 ? kBigBytes : ShadowCounters::kNever;
    counters_.watched.fill(ShadowCounters::kNobody);
    auto longest_ns =
        kLongestNs + static_cast<std::uint64_t>(2 * own_ns + kLongestSampleNs * allocations / every_);
    while (allocations > 0) {
        const std::uint64_t in_run_ns = base::monotonic_ns() - start_ns;
        if (in_run_ns > longest_ns || events_.size() > kMostEvents) break;
        const auto run =
            space.go_on(start_ns + longest_ns, [&](std::uint64_t page) { return pages.bring(space, page); });
        if (run != ShadowSpace::End::stopped) break;
        if (!is_over_ && this->hits(group_) > hits) {
            is_over_ = true;
            draw_no_more();
            longest_ns = in_run_ns + static_cast<std::uint64_t>(kGoOnShare * own_ns) + kGoOnNs;
        }
        if (is_over_ && live_.empty() && !call_) break;
        const auto regs = space.registers();
        if (!regs) break;
        if (const auto site = space.stopped_at(regs->rip)) {
            on_site(space, *site, *regs);
        } else if (!call_ || regs->rip != call_->return_address + 1 || !on_return(space, *regs)) {
            break;
        }
    }
    if (call_) space.write_byte(call_->return_address, call_->displaced);
    call_.reset();
    draw_no_more();
    counters_.watched.fill(ShadowCounters::kNobody);
    tell_contents();
}

void ShadowSampler::keep_up() {
    thread_states_.keep_up(base::monotonic_ns());
}

void ShadowSampler::draw_no_more() {
    counters_.countdown = {ShadowCounters::kNever, ShadowCounters::kNever};
    counters_.big_bytes = ShadowCounters::kNever;
}

/// The shadow did what the target does, from the same state on: what its blocks hold now is what the target's
/// hold a little after the window.
void ShadowSampler::tell_contents() {
    const std::uint64_t end_ns = present_ns();
    for (std::size_t i = events_.size(); i-- > 0;) {
        const TraceEvent& born = events_[i].event;
        if (born.type != TraceEventType::alloc || live_.erase(born.address) == 0) continue;
        Event told;
        told.event.type = TraceEventType::content;
        told.event.kind = born.kind;
        told.event.window = born.window;
        told.event.address = born.address;
        told.event.time_ns = end_ns;
        BlockContent& content = told.event.content;
        content.count = BlockContent::words_of(born.size_bytes);
        const base::Address block(born.address);
        if (!memory_.read_touched(block,
                                  std::as_writable_bytes(std::span(content.words).first(content.count))))
            continue;
        // Page-aligned blocks of other allocators than glibc's may have nothing in front.
        static_cast<void>(memory_.read_touched(block - sizeof content.before,
                                               std::as_writable_bytes(std::span(&content.before, 1))));
        content.settled = end_ns > born.time_ns + settles_after_ns(born.size_bytes) ? 1 : 0;
        events_.push_back(std::move(told));
    }
}

void ShadowSampler::on_site(ShadowSpace& space, std::size_t index, const user_regs_struct& regs) {
    const PlannedSite& planned = sites_[index];
    const Site& site = planned.site;
    const bool drawn = !is_over_ && !site.is_release() && counters_.countdown[group_of(site.group)] == 0;
    const std::uint64_t slot = regs.rsp + planned.point.return_slot_bytes;
    if (drawn) draw(group_);
    if (call_ && call_->site->site.kind == SiteKind::reallocate && !site.is_release() &&
        call_->stack_pointer == slot + 8) {
        // glibc's realloc(NULL, n) jumps to malloc: the same call, and malloc's to count.
        space.write_byte(call_->return_address, call_->displaced);
        if (!is_over_) counters_.countdown[group_] = call_->countdown;
        call_.reset();
    }
    if (site.args.old != Argument::none) end_block(argument(site.args.old, regs));
    if (is_over_ || site.is_release() || call_ || group_of(site.group) != group_) return;
    const auto asked = requested_bytes(site, regs);
    const bool big =
        std::max(argument(site.args.size, regs), argument(site.args.count, regs)) > counters_.big_bytes;
    if (!asked || (!drawn && !big) || maps_a_file(site, regs)) return;
    if (site.limit_bytes != 0 && *asked > site.limit_bytes) return;
    if (window_.limit_bytes != 0 && *asked > window_.limit_bytes && comes_by_large(site, regs)) return;
    if (*asked == 0 && site.kind != SiteKind::allocate) return;
    begin(space, planned, big ? 1 : 1 / every_, regs);
}

void ShadowSampler::begin(ShadowSpace& space, const PlannedSite& planned, double probability,
                          const user_regs_struct& regs) {
    const Site& site = planned.site;
    const std::uint64_t slot = regs.rsp + planned.point.return_slot_bytes;
    const auto return_address = memory_.read<std::uint64_t>(base::Address(slot));
    if (!return_address || from_inside(map_, site, *return_address) ||
        is_interpreters_own(map_, site, regs, *return_address))
        return;
    const auto displaced = space.write_byte(*return_address, std::byte{0xCC});
    if (!displaced) return;
    Call call;
    call.probability = probability;
    call.site = &planned;
    call.stack_pointer = slot + 8;
    call.return_address = *return_address;
    call.out = argument(site.args.out, regs);
    call.displaced = *displaced;
    call.countdown = counters_.countdown[group_];
    TraceEvent& event = call.sample.event;
    event.kind = site.group;
    event.tid = tid_;
    event.time_ns = present_ns();
    event.size_bytes = own_bytes(site, requested_bytes(site, regs).value_or(0));
    event.sampling_bytes = sampling_bytes(event.size_bytes, probability);
    event.window = window_.id;
    event.caller = *return_address;
    read_stack(regs.fs_base, call.sample);
    if (site.kind == SiteKind::reallocate && argument(site.args.old, regs) == 0)
        counters_.countdown[group_] = 1;
    call_ = std::move(call);
}

void ShadowSampler::read_stack(std::uint64_t pthread, Event& sample) {
    const auto states = thread_states_.find(pthread, base::monotonic_ns());
    if (states.empty()) return;
    raw_.frames.clear();
    raw_.truncated = raw_.broken = false;
    base::Address innermost;
    if (reader_.walk(states, raw_, innermost, true) == python::WalkStatus::gone) {
        thread_states_.forget(pthread);
        return;
    }
    sample.frames.assign(raw_.frames.begin(), raw_.frames.end());
    sample.event.stack_truncated = raw_.truncated;
    sample.event.stack_broken = raw_.broken;
}

void ShadowSampler::see_stack(std::uint64_t pthread) {
    memory_.begin_hold();
    seen_ = {};
    read_stack(pthread, seen_);
    memory_.end_hold();
}

/// False where the shadow can't go on.
bool ShadowSampler::on_return(ShadowSpace& space, user_regs_struct regs) {
    Call call = std::move(*call_);
    call_.reset();
    space.write_byte(call.return_address, call.displaced);
    const Site& site = call.site->site;
    if (site.kind == SiteKind::reallocate && !is_over_) counters_.countdown[group_] = call.countdown;
    const bool is_own = regs.rsp == call.stack_pointer;  // else an outer call's return: not looked at further
    std::uint64_t block = regs.rax;
    if (site.kind == SiteKind::allocate_out) {
        block = regs.rax == 0 ? memory_.read<std::uint64_t>(base::Address(call.out)).value_or(0) : 0;
    }
    if (is_own && block != 0 && block < kFirstErrorResult) {
        call.sample.event.address = block;
        bytes_ += static_cast<double>(call.sample.event.size_bytes) / call.probability;
        live_[block] = place_of(block);
        counters_.watched[place_of(block)] = block;
        ++samples_;
        events_.push_back(std::move(call.sample));
    }
    regs.rip = call.return_address;
    return space.set_registers(regs);
}

void ShadowSampler::end_block(std::uint64_t block) {
    if (live_.erase(block) == 0) return;
    if (counters_.watched[place_of(block)] == block)
        counters_.watched[place_of(block)] = ShadowCounters::kNobody;
    Event end;
    end.event.type = TraceEventType::free;
    end.event.tid = tid_;
    end.event.time_ns = present_ns();
    end.event.address = block;
    events_.push_back(std::move(end));
}

}  // namespace memattach::probe
