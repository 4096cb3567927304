#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/probe/alloc_probe.h"

namespace memattach::probe {
namespace {

constexpr std::byte kInt3{0xCC};

/// It slept in a system call, and was woken up to stop: -ERESTARTSYS and its kin (include/linux/errno.h).
bool is_to_be_restarted(const user_regs_struct& regs) {
    const auto result = -static_cast<std::int64_t>(regs.rax);
    return static_cast<std::int64_t>(regs.orig_rax) >= 0 &&
           ((result >= 512 && result <= 514) || result == 516);
}

trace::AllocKind other_of(trace::AllocKind kind) {
    return kind == trace::AllocKind::object ? trace::AllocKind::malloc : trace::AllocKind::object;
}

}  // namespace

Moment AllocProbe::moment(std::uint64_t now_ns, bool exact) const {
    Moment now{now_ns, tracer_->own_time_ns()};
    now.is_late = tracer_->parallel() > 1;
    if (exact && now.is_late) now.exact_ns = tracer_->exact_own_time_ns();
    return now;
}

void AllocProbe::apply_plan(std::uint64_t now_ns) {
    take_shadow();
    schedule_->allow_copies(shadow_.is_available(),
                            schedule_->wants_copies() && !shadow_of_ && shadow_.is_ready());
    const Plan before = plan_;
    plan_ = schedule_->step(moment(now_ns, schedule_->is_timing()));
    for (const auto kind : kKinds) {
        const GroupPlan& plan = plan_.of(kind);
        if (has_tail(kind) && before.of(kind).window != 0 && plan.window != before.of(kind).window)
            begin_tail(kind, now_ns);
        const bool in_tail = has_tail(kind) && tail_of(kind).is_watched();
        set_armed(kind, plan.armed ? Armed::all : in_tail ? Armed::ends : Armed::nothing);
        if (plan.copy && has_tail(kind)) ask_for_copy(kind);
        if (plan.window == 0 || plan.window == before.of(kind).window) continue;
        schedule_->group(kind).armed(moment(base::monotonic_ns(), true));
    }
    send_windows();
}

/// Hands a shadow's result to the group that asked for it.
void AllocProbe::take_shadow() {
    if (!shadow_of_ || asked_tid_ != 0) return;
    const auto results = shadow_.take();
    if (!results) return;
    schedule_->work((*results)[0].taken_ns + (*results)[1].taken_ns);
    schedule_->group(*shadow_of_).copied((*results)[0]);
    if (std::exchange(shadow_of_both_, false)) schedule_->group(other_of(*shadow_of_)).copied((*results)[1]);
    shadow_of_.reset();
}

/// Stops a thread that runs, so that a shadow takes over from there. Own time passes where threads run: each
/// of them is as good.
void AllocProbe::ask_for_copy(trace::AllocKind kind) {
    if (asked_tid_ != 0 || shadow_of_) return;
    const auto tid = tracer_->interrupt_running(random_);
    if (!tid) return;
    schedule_->group(kind).copy_asked(moment(base::monotonic_ns()));
    asked_tid_ = *tid;
    shadow_of_ = kind;
    shadow_.announce();
}

void AllocProbe::on_interrupted(pid_t tid, const user_regs_struct& regs, bool at_trap) {
    if (tid != std::exchange(asked_tid_, 0) || !shadow_of_) return;
    GroupSchedule& group = schedule_->group(*shadow_of_);
    const Moment now = moment(base::monotonic_ns());
    hit_.kind = *shadow_of_;
    if (!group.is_copying()) {  // it took too long
        shadow_of_.reset();
    } else if (is_to_be_restarted(regs) ||
               (static_cast<std::int64_t>(regs.orig_rax) >= 0 && group.is_copy_late(now))) {
        group.copy_missed(now);
        shadow_of_.reset();
    } else if (at_trap || is_inside_site(regs.rip)) {
        static_cast<void>(group.copy());
        group.copied({});
        shadow_of_.reset();
    } else {
        // A state that is there does for the other group too, if that waits for one.
        std::array<ShadowWindow, 2> windows{group.copy()};
        const std::uint64_t limit_bytes = large_limit_bytes();
        GroupSchedule& other = schedule_->group(other_of(*shadow_of_));
        shadow_of_both_ = other.wants_copy();
        if (shadow_of_both_) {
            other.copy_asked(now);
            windows[1] = other.copy();
        }
        for (ShadowWindow& window : windows) window.limit_bytes = limit_bytes;
        shadow_.submit(std::span(windows).first(shadow_of_both_ ? 2 : 1), tid, regs, tracer_->cpu());
    }
    apply_plan(base::monotonic_ns());
}

/// Among the bytes that the shadow's jump replaces, behind the first.
bool AllocProbe::is_inside_site(std::uint64_t pc) const {
    constexpr std::uint64_t kJumpBytes = 5;
    return std::any_of(sites_.begin(), sites_.end(), [&](const PlannedSite& site) {
        return pc > site.address && pc < site.address + kJumpBytes;
    });
}

/// For a hit of a kind that goes by windows: whether it counts. The hit that finds the window over closes it.
bool AllocProbe::in_window(trace::AllocKind kind) {
    GroupSchedule& group = schedule_->group(kind);
    if (group.surely_counts(tracer_->stop_start_ns())) return true;
    const Moment now = moment(tracer_->stop_start_ns(), group.is_timing());
    switch (group.arrive(now, tracer_->parallel())) {
        case Arrival::counts:
            return true;
        case Arrival::ignore:
            return false;
        case Arrival::closing:
            group.close(now);
            break;
    }
    apply_plan(base::monotonic_ns());
    return false;
}

void AllocProbe::set_armed(trace::AllocKind kind, Armed armed) {
    Armed& present = armed_[static_cast<std::size_t>(kind)];
    if (present == armed) return;
    const auto wants = [&](Armed level, bool ends_blocks) {
        return level == Armed::all ||
               (level == Armed::ends && (ends_blocks || kind == trace::AllocKind::large));
    };
    const Armed before = std::exchange(present, armed);
    // What stands there now is read for all of them at once.
    changing_.clear();
    for (std::size_t i = 0; i < sites_.size(); ++i) {
        const PlannedSite& planned = sites_[i];
        const bool ends_blocks = planned.site.args.old != Argument::none;
        if (planned.site.group == kind && wants(before, ends_blocks) != wants(armed, ends_blocks))
            changing_.push_back({i, {}});
    }
    pieces_.clear();
    for (Changing& site : changing_)
        pieces_.push_back({base::Address(sites_[site.index].address), std::span(&site.byte, 1)});
    const std::size_t arrived = memory_.read_pieces(pieces_);
    for (std::size_t i = 0; i < changing_.size(); ++i) {
        const PlannedSite& planned = sites_[changing_[i].index];
        const std::byte present_byte = changing_[i].byte;
        if (wants(before, planned.site.args.old != Argument::none)) {
            tracer_->remove(planned.address, i < arrived && present_byte == kInt3);
        } else if (!tracer_->plant(planned.address, planned.point.displaced, planned.point.original,
                                   changing_[i].index,
                                   i < arrived && present_byte == planned.point.original)) {
            shared_.figures.plant_failures.fetch_add(1, std::memory_order_relaxed);
            if (kind == trace::AllocKind::large) refuse_large();
        }
    }
    for (const Redirect& redirect : map_.redirects) {
        if (redirect.group != kind || wants(before, redirect.is_release) == wants(armed, redirect.is_release))
            continue;
        if (wants(armed, redirect.is_release)) {
            tracer_->redirect(redirect.slot.value(), redirect.original, redirect.alias);
        } else {
            tracer_->undo_redirect(redirect.slot.value());
        }
    }
}

/// Blocks of a window are looked at from now on, and soon: what takes the place of one may look like it.
void AllocProbe::send_windows() {
    const std::uint64_t waiting = shared_.ring.waiting_bytes();
    bool any = false;
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
        any = any || window.id != 0;
    }
    if (any && waiting > 0) notify(base::monotonic_ns(), true);
}

}  // namespace memattach::probe
