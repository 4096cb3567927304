#include "memattach/probe/alloc_probe.h"

namespace memattach::probe {

/// Where large blocks come by alone is a site as the others are, and the last of them.
void AllocProbe::find_large() {
    for (const python::ThreadState& state : reader_.threads()) {
        large_ = find_large_entry(memory_, map_, state.pthread.value());
        if (large_) break;
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
    return large_ && asked > large_->limit_bytes() && schedule_->has_large() && comes_by_large(site, regs);
}

void AllocProbe::on_large(pid_t tid, const user_regs_struct& regs) {
    hit_ = {};
    hit_.kind = trace::AllocKind::large;
    shared_.figures.hits.fetch_add(1, std::memory_order_relaxed);
    hit_counts_ = false;
    GroupSchedule& group = schedule_->group(trace::AllocKind::large);
    const bool counts = !group.is_windowed() || in_window(trace::AllocKind::large);
    if (!counts && !tail_of(trace::AllocKind::large).is_watched()) return;
    const auto asked = large_->find_call(memory_, regs);
    if (!asked || from_inside(map_, sites_.back().site, asked->return_address)) return;
    ThreadCalls& thread = threads_[tid];
    drop_stale(thread, asked->stack_pointer);
    // Kept at malloc's entry, before that group went to windows.
    if (!thread.calls.empty() && thread.calls.back().stack_pointer == asked->stack_pointer + 8) return;
    const double sampling_bytes = group.sampling_bytes();
    Call call;
    call.in_tail = !counts;
    if (counts) {
        hit_counts_ = true;
        hit_.size_bytes = asked->size_bytes;
        hit_.sampled = call.kept = sampler_.keep(asked->size_bytes, sampling_bytes);
        if (!call.kept) return;
    }
    call.site = sites_.size() - 1;
    call.stack_pointer = asked->stack_pointer + 8;
    call.return_address = asked->return_address;
    call.event.kind = trace::AllocKind::large;
    call.event.tid = tid;
    call.event.time_ns = tracer_->stop_start_ns();
    call.event.size_bytes = asked->size_bytes;
    call.event.sampling_bytes = sampling_bytes;
    call.event.window = plan_.large.window;
    call.event.caller = asked->return_address;
    begin_call(tid, call.site, regs, std::move(call));
}

}  // namespace memattach::probe
