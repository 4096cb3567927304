#include "memattach/base/clock.h"
#include "memattach/probe/alloc_probe.h"

namespace memattach::probe {

Moment AllocProbe::moment(std::uint64_t now_ns) const {
    return {now_ns, tracer_->own_time_ns()};
}

void AllocProbe::apply_plan(std::uint64_t now_ns) {
    take_shadow();
    schedule_->allow_copies(shadow_.is_available(),
                            schedule_->wants_copies() && !shadow_of_ && shadow_.is_ready());
    const Plan before = plan_;
    plan_ = schedule_->step(moment(now_ns));
    for (const auto kind : kKinds) {
        const GroupPlan& plan = plan_.of(kind);
        set_armed(kind, plan.armed);
        if (plan.window == 0 || plan.window == before.of(kind).window) continue;
        schedule_->group(kind).armed(moment(base::monotonic_ns()));
    }
    if (plan_.malloc.window != 0 || plan_.object.window != 0) {
        occupants_.occupy(tracer_->cpu());
    } else {
        occupants_.leave();
    }
    send_windows();
}

/// Hands a shadow's result to the group that asked for it.
void AllocProbe::take_shadow() {
    if (!shadow_of_) return;
    const auto result = shadow_.take();
    if (!result) return;
    schedule_->group(*shadow_of_).copied(*result);
    shadow_of_.reset();
}

/// For a hit of a kind that goes by windows: whether it counts. The hit that finds the window over closes it,
/// and so does the one at which a shadow takes over.
bool AllocProbe::in_window(pid_t tid, trace::AllocKind kind, const user_regs_struct& regs) {
    GroupSchedule& group = schedule_->group(kind);
    const Moment now = moment(base::monotonic_ns());
    switch (group.arrive(now)) {
        case Arrival::counts:
            return true;
        case Arrival::ignore:
            return false;
        case Arrival::copy:
            shadow_.submit(group.copy(now), tid, regs, tracer_->cpu());
            shadow_of_ = kind;
            break;
        case Arrival::closing:
            group.close(now);
            break;
    }
    apply_plan(base::monotonic_ns());
    return false;
}

void AllocProbe::set_armed(trace::AllocKind kind, bool armed) {
    bool& is_armed = armed_[static_cast<std::size_t>(kind)];
    if (is_armed == armed) return;
    is_armed = armed;
    for (std::size_t i = 0; i < sites_.size(); ++i) {
        const PlannedSite& planned = sites_[i];
        if (planned.site.group != kind) continue;
        if (!armed) {
            tracer_->remove(planned.address);
        } else if (!tracer_->plant(planned.address, planned.point.displaced, planned.point.original, i)) {
            shared_.figures.plant_failures.fetch_add(1, std::memory_order_relaxed);
        }
    }
    for (const Redirect& redirect : map_.redirects) {
        if (redirect.group != kind) continue;
        if (armed) {
            tracer_->redirect(redirect.slot.value(), redirect.original, redirect.alias);
        } else {
            tracer_->undo_redirect(redirect.slot.value());
        }
    }
}

void AllocProbe::send_windows() {
    for (const trace::Window& window : schedule_->take_closed()) {
        TraceEvent event;
        event.type = TraceEventType::window;
        event.kind = window.kind;
        event.window = window.id;
        event.time_ns = window.start_ns;
        event.address = window.end_ns;
        event.own_ns = window.own_ns;
        event.span_own_ns = window.span_own_ns;
        event.own_spread = window.own_spread;
        send(event, {});
    }
}

}  // namespace memattach::probe
