#include <array>
#include <cstddef>
#include <span>

#include "memattach/probe/alloc_probe.h"
#include "memattach/process/proc.h"

namespace memattach::probe {

namespace {

/// Whether what stands in front of `code`'s end is a call (Intel SDM volume 2: E8 with 4 bytes, FF /2 with 1
/// to 6 more).
bool ends_with_call(std::span<const std::byte, 8> code) {
    if (code[3] == std::byte{0xE8}) return true;
    for (std::size_t length = 2; length <= 7; ++length) {
        const std::size_t at = code.size() - length;
        if (code[at] == std::byte{0xFF} && (code[at + 1] & std::byte{0x38}) == std::byte{0x10}) return true;
    }
    return false;
}

/// glibc's tunable (manual/tunables.texi, 2.26 on): larger blocks are served from a thread's cache, from 2.42
/// on up to 4 MB of them, and then don't come by where large requests do.
bool caches_large(pid_t pid) {
    return process::read_variable(pid, "GLIBC_TUNABLES").value_or("").find("glibc.malloc.tcache_max=") !=
           std::string::npos;
}

}  // namespace

/// Where large blocks come by alone is a site as the others are, and the last of them. Nothing is stopped
/// yet.
void AllocProbe::find_large() {
    if (caches_large(pid_)) return;
    // Any thread's will do; the second is for one that has only just been started.
    constexpr int kMostThreads = 2;
    int tried = 0;
    for (const python::ThreadState& state : reader_.threads()) {
        if (state.pthread.value() == 0) continue;
        large_ = find_large_entry(memory_, map_, state.pthread.value());
        if (large_ || ++tried == kMostThreads) break;
    }
    if (!large_) return;
    PlannedSite planned;
    planned.site.address = base::Address(large_->address);
    planned.site.kind = SiteKind::allocate;
    planned.site.group = trace::AllocKind::large;
    planned.site.symbol = "malloc";
    planned.address = large_->address;
    planned.point.displaced = large_->displaced;
    planned.point.original = large_->original;
    sites_.push_back(std::move(planned));
    shared_.figures.large_from_bytes.store(large_->least_bytes, std::memory_order_relaxed);
}

/// Whether the large group sees this request, so that it isn't counted here.
bool AllocProbe::is_larges(const Site& site, std::uint64_t asked, const user_regs_struct& regs) const {
    return large_limit_bytes() != 0 && asked > large_limit_bytes() && comes_by_large(site, regs);
}

/// What requests have to be larger than to be the large group's at present; 0: they aren't.
std::uint64_t AllocProbe::large_limit_bytes() const {
    return large_ && !large_refused_ && schedule_->has_large() ? large_->limit_bytes() : 0;
}

/// Something else stands where its breakpoint should: large blocks are as all others are.
void AllocProbe::refuse_large() {
    large_refused_ = true;
    shared_.figures.large_from_bytes.store(0, std::memory_order_relaxed);
}

/// Found on the stack where the return address of the call of malloc must be. A breakpoint is put there, so
/// that it is looked at once more, the first time: code, and behind a call.
bool AllocProbe::is_return_address(std::uint64_t address) {
    if (return_points_.contains(address)) return true;
    std::array<std::byte, 8> code{};
    if (!memory_.read_exactly(base::Address(address - code.size()), code) || !ends_with_call(code))
        return false;
    const process::Mapping* mapping = maps_.find(base::Address(address));
    return mapping != nullptr && mapping->executable;
}

void AllocProbe::on_large(pid_t tid, const user_regs_struct& regs) {
    hit_ = {};
    hit_.kind = trace::AllocKind::large;
    shared_.figures.hits.fetch_add(1, std::memory_order_relaxed);
    hit_counts_ = false;
    GroupSchedule& group = schedule_->group(trace::AllocKind::large);
    const bool counts =
        large_limit_bytes() != 0 && (!group.is_windowed() || in_window(trace::AllocKind::large));
    if (!counts && !tail_of(trace::AllocKind::large).is_watched()) return;
    // Whoever asks: a stop is a stop.
    hit_counts_ = counts;
    hit_.size_bytes = large_->size_bytes(regs);
    const double sampling_bytes = group.sampling_bytes();
    Call call;
    call.kept = counts && sampler_.keep(hit_.size_bytes, sampling_bytes);
    call.in_tail = !counts;
    if (counts && !call.kept) return;
    const auto asked = large_->find_call(memory_, regs);
    if (!asked || from_inside(map_, sites_.back().site, asked->return_address) ||
        !is_return_address(asked->return_address)) {
        if (call.in_tail) tail_block_ends(trace::AllocKind::large, tid, 0);
        return;
    }
    ThreadCalls& thread = threads_[tid];
    drop_stale(thread, asked->stack_pointer);
    // Kept at malloc's entry, before that group went to windows.
    if (!thread.calls.empty() && thread.calls.back().stack_pointer == asked->stack_pointer + 8) return;
    hit_.sampled = call.kept;
    call.site = sites_.size() - 1;
    call.stack_pointer = asked->stack_pointer + 8;
    call.return_address = asked->return_address;
    call.event.kind = trace::AllocKind::large;
    call.event.tid = tid;
    call.event.time_ns = tracer_->stop_start_ns();
    call.event.size_bytes = hit_.size_bytes;
    call.event.sampling_bytes = sampling_bytes;
    call.event.window = plan_.large.window;
    call.event.caller = asked->return_address;
    begin_call(tid, call.site, regs, std::move(call));
}

}  // namespace memattach::probe
