#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "give_up.h"
#include "memattach/base/clock.h"
#include "memattach/probe/stop_clock.h"
#include "memattach/process/proc.h"
#include "shadow_sampler.h"
#include "shadow_timing.h"

namespace memattach::probe {
namespace {

/// The run that finds the pages and warms the caches goes further than the one that is measured.
constexpr double kWarmShare = 1.5, kWarmMoreNs = 15'000;
/// A processor that has done something else for a while runs the same instructions slower at first, all
/// through the window: three times as slow at first, and even after four runs a program that goes over
/// hundreds of pages gets faster. Whatever else happens on the machine only makes a run slower, single ones
/// by two: the fastest counts. Runs go on until so many in a row have gained nothing.
constexpr int kMostRuns = 8, kRunsWithoutGain = 2;
constexpr double kGain = 1.02;
/// So often it is tried how far the state gets in the window's time, while it gets farther by so much: pages
/// that it finds, or that the kernel has to map for it, take more of that time than anything else.
constexpr int kMostTries = 4;
constexpr double kFarther = 1.15;
/// A window that ends at an allocation is timed by it, if it isn't one of the first.
constexpr double kLeastGoal = 4;
/// How much longer the first run up to a goal takes than the fastest.
constexpr double kMostSlowness = 2, kSlownessMemory = 32;
/// What a stub adds to a hit, among other instructions that don't wait for it.
constexpr double kStubNs = 1.2;
constexpr double kShortestNs = 15'000;
/// No program allocates faster: less is an error of what was taken off.
constexpr double kShortestGapNs = 10;
/// What the program would have taken, of a shadow's time: a shadow goes a way that it has gone before. Of 22
/// sessions (kShadowSpread) half came out below 0.93 of the bytes with 1.15.
constexpr double kProgramsOwn = 1.05;
/// A run is at least so many times as long as a cold start takes.
constexpr double kLeastStarts = 2;
/// What starting and stopping costs isn't known to better than this.
constexpr double kUnsureNs = 1'000;
/// So often the shadow is made anew: what was code or a constant then may be something else by now.
constexpr int kRunsPerSpace = 512;
constexpr int kMostFailures = 3;
/// What passes between a run's start, and its end, and the thread's. On a virtual machine whose page tables
/// are kept by its hypervisor's software the first instruction may come 100 µs later.
constexpr double kMostStartingNs = 300'000;
/// Pages that a run may still miss without being spoilt by it.
constexpr std::size_t kFewPages = 4;
/// Where fewer of the last states missed more than that, nobody waits until the next has found its pages. One
/// that was spoilt by it counts as several: windows that are left out are those in which the program goes
/// through fresh memory, and their allocations with them.
constexpr double kTrusted = 0.3, kSpoilt = 3, kTrustMemory = 8, kStatesToTrust = 4;

class Keeper {
  public:
    Keeper(pid_t target, const python::Runtime& runtime, const SiteMap& map,
           std::span<const PlannedSite> sites, const PatchTable& patches, ShadowShared& shared,
           ShadowCounters& counters, std::span<const std::span<std::byte>> unmapped, int notify_fd)
        : target_(target),
          memory_(target),
          sites_(sites),
          shared_(shared),
          counters_(counters),
          unmapped_(unmapped),
          notify_fd_(notify_fd),
          pages_(memory_, patches, map.redirects, shared),
          sampler_(target, memory_, runtime, map, sites, counters) {
        CPU_ZERO(&allowed_);
        sched_getaffinity(0, sizeof allowed_, &allowed_);
    }

    void prepare() {
        if (build()) {
            finish(ShadowShared::idle);
        } else {
            finish(++failures_ < kMostFailures ? ShadowShared::asleep : ShadowShared::unavailable);
        }
    }

    /// A thread that is about to be submitted needn't wait for this process to wake up.
    void await_announced() const {
        constexpr std::uint64_t kPatienceNs = 200'000;
        if (shared_.announced.exchange(0) == 0 || CPU_COUNT(&allowed_) < 2) return;
        const std::uint64_t until_ns = base::monotonic_ns() + kPatienceNs;
        while (shared_.state.load(std::memory_order_acquire) == ShadowShared::idle &&
               base::monotonic_ns() < until_ns)
            __builtin_ia32_pause();
    }

    void serve() {
        const std::uint64_t start_ns = base::monotonic_ns();
        shared_.results = {};
        ++runs_;
        measure();
        release();
        sampler_.keep_up();
        if (space_) pages_.learn(finds_most());
        const bool stays = space_ && runs_ < kRunsPerSpace && !outdated_ && !pages_.is_full();
        const bool is_there = stays || build() || ++failures_ < kMostFailures;
        const auto work_ns = static_cast<double>(base::monotonic_ns() - start_ns);
        for (ShadowResult& result : shared_.results) result.work_ns = work_ns / shared_.window_count;
        finish(is_there ? ShadowShared::done : ShadowShared::unavailable);
    }

  private:
    void finish(ShadowShared::State state) { shared_.state.store(state, std::memory_order_release); }

    void release() {
        shared_.released.store(1, std::memory_order_release);
        shared_.hold_over.store(1, std::memory_order_release);
    }

    bool build() {
        space_.reset();
        if (pages_.data_fd() < 0) return false;
        mappings_ = process::read_maps(target_);
        // A run takes 25 µs instead of 10 where the shadow has to wake another processor at its end: it
        // starts where this process is, and stays there.
        choose_cpu();
        const ShadowSpace::Options options{memory_,   mappings_,  sites_,
                                           unmapped_, &counters_, pages_.data_fd()};
        space_ = std::make_unique<ShadowSpace>(options);
        if (space_->empty_run_ns() == 0) {
            space_.reset();
            return false;
        }
        space_->kernel().set_pid(process::namespace_tid(target_, target_).value_or(0));
        pages_.begin_space(*space_, mappings_);
        runs_ = 0;
        outdated_ = false;
        failures_ = 0;
        return true;
    }

    /// The state that was submitted, and nothing counted.
    bool restore() {
        counters_.hits.fill(0);
        const std::size_t bytes = std::min<std::size_t>(shared_.state_bytes, ShadowShared::kStateBytes);
        pages_.restore();
        return bytes != 0 &&
               space_->set_state(shared_.registers, std::span(shared_.extended_state).first(bytes));
    }

    /// Its own time, the counters' apart; with what a cold start took.
    [[nodiscard]] double own_of(const ShadowSpace::Run& run) const {
        return static_cast<double>(run.cpu_ns) - static_cast<double>(space_->empty_run_ns()) -
               kStubNs * (sampler_.hits(0) + sampler_.hits(1));
    }

    void measure() {
        if (!space_) return;
        const auto windows = std::span(shared_.windows).first(shared_.window_count);
        double wanted_ns = 0;
        for (const ShadowWindow& window : windows) wanted_ns = std::max(wanted_ns, window.own_ns);
        counters_.watched.fill(ShadowCounters::kNobody);
        counters_.big_bytes = ShadowCounters::kNever;
        // Where a start costs as much as a window is long, own time would be what is left of two large
        // figures.
        const double rest_ns = std::clamp(std::max(wanted_ns, kLeastStarts * cold_ns()), 0.0, 10e6);
        choose_cpu();
        space_->begin_state();
        const auto when_read = [&] {
            sampler_.see_stack(shared_.registers.fs_base);
            if (finds_most()) release();
        };
        if (space_->replaces(shared_.registers.rip) || !pages_.begin_state(when_read)) {
            spoil();
            return;
        }
        before_late_ = {};
        const std::size_t missed_before = pages_.missed_data();
        static_cast<void>(go(kWarmShare * rest_ns + kWarmMoreNs, [this] { release(); }));
        release();
        Way way = find_way(rest_ns);
        const Timed& full = way.full;
        const Goal& goal = way.goal;
        if (full.run.end == ShadowSpace::End::gone) {
            outdated_ = true;
            return;
        }
        if (way.has_not_moved) {
            // The timer was faster than the shadow.
            starting_ns_.value = std::min(1.5 * starting_ns_.value + kShortestNs, kMostStartingNs);
            return;
        }
        if (full.is_cut && full.run.end == ShadowSpace::End::stopped) check_layout();
        if (goal.allocations >= 2 * kLeastGoal && cold_.wants_more(runs_)) add_half(full, goal, rest_ns);
        const bool misses_page = full.run.end == ShadowSpace::End::missing_page;
        const bool finds_pages = !misses_page && pages_.missed_data() - missed_before <= kFewPages;
        const bool goes_astray = full.is_cut && pages_.late() > 0 && space_->has_faulted();
        missing_.add(goes_astray ? kSpoilt : finds_pages ? 0 : 1, kTrustMemory);
        if (goes_astray) {
            way = way_before_late(rest_ns);
            if (full.run.end == ShadowSpace::End::gone) {
                spoil();
                return;
            }
        }
        const bool is_cut = full.is_cut;
        double own_ns = kProgramsOwn * (full.own_ns - std::min(cold_ns(), std::max(full.own_ns, 0.0)));
        // It ends with an allocation: up to the next there would have been some more time without one.
        if (goal.allocations > 0) own_ns *= (goal.allocations + 1) / goal.allocations;
        // Forged counters can't say more than a processor can do.
        const bool plausible = full.all_hits() < 1e3 + own_ns && own_ns > -kUnsureNs;
        // One more is where it ended.
        const bool undisturbed = full.missed <= kFewPages + (misses_page ? 1 : 0);
        // Where the start is dear, what is left may be nothing but an error of it.
        if (is_cut && is_start_dear() && own_ns < 2 * empty_ns()) return;
        // What comes behind a page that can't be had, or a system call, isn't known. The window stays one:
        // leaving out all those would leave out what is allocated before. A few microseconds, or what is left
        // of them without the start, must not stand for a span, though.
        const double told_ns =
            std::max({own_ns, std::min(rest_ns, kShortestNs), kShortestGapNs * full.all_hits()});
        if (!plausible || !undisturbed) return;
        for (std::size_t i = 0; i < windows.size(); ++i) {
            const std::size_t group = group_of(windows[i].group);
            if (!space_->counts(group)) continue;
            shared_.results[i].complete = !is_cut || own_ns >= rest_ns;
            sample(windows[i], told_ns, full.hits[group], full.allocations[group], shared_.results[i]);
        }
    }

    void spoil() {
        for (ShadowResult& result : shared_.results) result.spoilt = true;
    }

    Timed timed_run(double length_ns, const Goal& goal = {}) {
        Timed timed;
        const std::size_t missed_before = pages_.missed_data() + pages_.missed_constants();
        timed.run = go(length_ns, {}, goal);
        timed.is_cut = timed.run.end != ShadowSpace::End::limit;
        timed.hits = {sampler_.hits(0), sampler_.hits(1)};
        timed.allocations = {sampler_.hits(0, true), sampler_.hits(1, true)};
        timed.own_ns = own_of(timed.run);
        timed.missed = pages_.missed_data() + pages_.missed_constants() - missed_before;
        return timed;
    }

    /// The way of the state in about so much of its own time, gone as fast as can be.
    Way find_way(double length_ns) {
        constexpr int kMostLengths = 3;
        constexpr double kLongEnough = 0.6, kLongest = 3;
        Way way;
        double asked_ns = length_ns;
        for (int i = 0; i < kMostLengths; ++i) {
            const Timed first = way.full = farthest(asked_ns);
            if (first.run.end == ShadowSpace::End::gone) return way;
            way.has_not_moved = !first.is_cut && has_not_moved();
            if (way.has_not_moved) return way;
            if (!first.is_cut && first.missed == 0 && first.run.calls == 0)
                starting_ns_.add(std::clamp(asked_ns + starting_ns_.value - (first.own_ns - cold_ns()), 0.0,
                                            kMostStartingNs),
                                 16);
            way.goal = goal_of(first);
            way.full = fastest(first, way.goal, asked_ns);
            // Without a goal it hasn't been gone with warm caches.
            if (!way.full.is_cut && way.goal.allocations == 0 && slowness_.count > 0)
                way.full.own_ns /= slowness_.value;
            const double known_ns = way.full.own_ns - cold_ns();
            if (way.full.is_cut || known_ns > kLongEnough * length_ns) return way;
            // Finding pages took most of the time: now that they are there it gets farther.
            asked_ns *= std::clamp(length_ns / std::max(known_ns, 1.0), 1.5, kLongest);
        }
        return way;
    }

    /// It went astray in memory that had changed when it was read: what it did up to there is what the thread
    /// did. The run's end is `gone` where that was next to nothing.
    Way way_before_late(double length_ns) {
        Way way;
        way.full.allocations = before_late_;
        way.goal = goal_of(way.full);
        if (way.goal.allocations > 0) way.full = fastest(way.full, way.goal, length_ns);
        way.full.is_cut = true;
        return way;
    }

    /// How far the state gets in so much of its own time.
    Timed farthest(double length_ns) {
        Timed best;
        for (int i = 0; i < kMostTries; ++i) {
            const Timed timed = timed_run(length_ns);
            if (timed.run.end == ShadowSpace::End::gone) return timed;
            const bool gains = i == 0 || timed.all_hits() > kFarther * best.all_hits();
            if (i == 0 || timed.all_hits() >= best.all_hits()) best = timed;
            if (timed.missed == 0 && (timed.is_cut || !gains)) break;
        }
        return best;
    }

    /// The last allocation of the group that has more. Nothing where it can't be told by one.
    [[nodiscard]] static Goal goal_of(const Timed& first) {
        const std::size_t group = first.allocations[0] > first.allocations[1] ? 0 : 1;
        if (first.is_cut || first.allocations[group] < kLeastGoal) return {};
        return {group, first.allocations[group]};
    }

    /// The same way again and again: how fast it can be gone. How far is known before, so that what lies at
    /// its end has no say in that. What a run changes is written back, and nothing else: the processor's
    /// caches hold what the program uses, as they do for the program.
    Timed fastest(const Timed& first, const Goal& goal, double length_ns) {
        constexpr double kPatience = 3;
        const bool has_goal = goal.allocations > 0;
        if (!has_goal && !first.is_cut) return first;
        Timed best = first;
        bool is_known = false;
        double first_own_ns = 0;
        for (int i = 0, since = 0; i < kMostRuns && since < kRunsWithoutGain; ++i) {
            Timed timed = timed_run(has_goal ? kPatience * length_ns : length_ns, goal);
            if (timed.run.end == ShadowSpace::End::gone) return timed;
            const bool arrives = has_goal ? timed.allocations[goal.group] == goal.allocations
                                          : timed.is_cut && timed.all_hits() == first.all_hits();
            if (has_goal) timed.is_cut = false;
            if (i == 0 && arrives) first_own_ns = timed.own_ns;
            const bool gains = arrives && (!is_known || timed.own_ns * kGain < best.own_ns);
            // The first two have other memory in their caches: all that was written back, or looked through.
            since = gains || i < 2 ? 0 : since + 1;
            if (arrives && (!is_known || timed.own_ns < best.own_ns)) best = timed;
            if (!arrives) {
                pages_.expect_any_change();
            } else if (!is_known || timed.missed > 0) {
                pages_.see_changes();
            }
            is_known = is_known || arrives;
        }
        pages_.expect_any_change();
        if (has_goal && first_own_ns > 0 && best.own_ns > kShortestNs)
            slowness_.add(std::min(first_own_ns / best.own_ns, kMostSlowness), kSlownessMemory);
        return best;
    }

    /// The same half as far.
    void add_half(const Timed& full, const Goal& goal, double length_ns) {
        const Goal middle{goal.group, std::floor(goal.allocations / 2)};
        const Timed half = fastest(full, middle, length_ns);
        if (half.run.end != ShadowSpace::End::gone && half.allocations[goal.group] == middle.allocations)
            cold_.add(full.own_ns, goal.allocations, half.own_ns, middle.allocations);
    }

    [[nodiscard]] bool finds_most() const {
        return missing_.count >= kStatesToTrust && missing_.value < kTrusted;
    }
    [[nodiscard]] double empty_ns() const { return static_cast<double>(space_->empty_run_ns()); }
    [[nodiscard]] double cold_ns() const { return cold_.ns(empty_ns()); }
    /// What is left of a short run's time is mostly its start.
    [[nodiscard]] bool is_start_dear() const { return empty_ns() > kShortestNs; }

    /// It executed nothing of the state that it was given.
    [[nodiscard]] bool has_not_moved() {
        if (sampler_.hits(0) + sampler_.hits(1) > 0) return false;
        const auto now = space_->registers();
        return now && now->rip == shared_.registers.rip && now->rsp == shared_.registers.rsp;
    }

    /// Next to the shadow, each waking the other, and not where the tracing process waits.
    void choose_cpu() {
        const int taken = shared_.tracer_cpu;
        if (cpu_ >= 0 && cpu_ != taken) return;
        cpu_set_t allowed = allowed_;
        if (taken >= 0 && CPU_COUNT(&allowed) > 1) CPU_CLR(static_cast<std::size_t>(taken), &allowed);
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) continue;
            cpu_ = cpu;
            if (space_) space_->set_cpu(cpu);
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(static_cast<std::size_t>(cpu), &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
    }

    /// Runs the state that was submitted for so much of its own time, or a little more, or up to `goal`.
    ShadowSpace::Run go(double own_ns, const std::function<void()>& at_end = {}, const Goal& goal = {}) {
        if (!restore()) return {};
        counters_.countdown = {ShadowCounters::kNever, ShadowCounters::kNever};
        if (goal.allocations > 0)
            counters_.countdown[goal.group] = static_cast<std::uint64_t>(goal.allocations);
        return space_->run(
            static_cast<std::uint64_t>(own_ns + starting_ns_.value),
            [this](std::uint64_t page) { return bring(page); }, at_end);
    }

    bool bring(std::uint64_t page) {
        const bool was_late = pages_.late() > 0;
        const bool is_there = pages_.bring(*space_, page);
        if (!was_late && pages_.late() > 0) before_late_ = {sampler_.hits(0, true), sampler_.hits(1, true)};
        return is_there;
    }

    void sample(const ShadowWindow& window, double own_ns, double hits, double allocations,
                ShadowResult& result) {
        if (!restore()) return;
        sampler_.run(*space_, pages_, window, shared_.tid, own_ns, hits, allocations);
        for (const auto& sample : sampler_.events()) shared_.ring.write(sample.event, sample.frames);
        result.ran = true;
        result.own_ns = own_ns;
        result.hits = hits;
        result.bytes = sampler_.bytes();
        TraceEvent end;
        end.type = TraceEventType::window;
        end.window = window.id;
        end.time_ns = window.start_wall_ns;
        end.address = window.start_wall_ns + static_cast<std::uint64_t>(own_ns);
        end.own_ns = static_cast<std::uint64_t>(own_ns);
        end.span_own_ns = static_cast<std::uint64_t>(std::max(window.span_ns, own_ns));
        end.own_spread = kShadowSpread;
        for (const auto kind : {trace::AllocKind::malloc, trace::AllocKind::mmap, trace::AllocKind::object}) {
            if (group_of(kind) != group_of(window.group)) continue;
            end.kind = kind;
            shared_.ring.write(end, {});
        }
        shared_.samples.fetch_add(sampler_.samples(), std::memory_order_relaxed);
        const std::uint64_t one = 1;
        if (::write(notify_fd_, &one, sizeof one) < 0) return;  // full: the reader has been told often enough
    }

    /// It went where nothing was mapped when the space was made: perhaps something is by now.
    void check_layout() {
        const auto address = space_->unmapped_address();
        if (!address) return;
        const auto mappings = process::read_maps(target_);
        const process::Mapping* mapping = process::find_mapping(mappings, base::Address(*address));
        outdated_ = mapping != nullptr && mapping->readable && mapping->path.rfind("[v", 0) != 0;
    }

    /// How far off own time may be, for all windows together: another processor, other neighbours. With it
    /// and with kProgramsOwn 51 of 58 lines of 22 sessions of eleven programs (tools/bench/memory/lines.py,
    /// over four minutes on one virtual machine) were within their interval.
    static constexpr double kShadowSpread = 0.2;

    pid_t target_;
    process::LiveMemory memory_;
    std::span<const PlannedSite> sites_;
    ShadowShared& shared_;
    ShadowCounters& counters_;
    std::span<const std::span<std::byte>> unmapped_;
    int notify_fd_;
    ShadowPages pages_;
    ShadowSampler sampler_;
    std::vector<process::Mapping> mappings_;
    std::unique_ptr<ShadowSpace> space_;
    int cpu_ = -1;  ///< where this process and the shadow are, next to each other
    cpu_set_t allowed_;
    ColdStart cold_;
    RunningMean slowness_;                ///< of a run for which everything was written back
    RunningMean starting_ns_{20'000, 4};  ///< of a run's wall time, in which the shadow doesn't run
    int runs_ = 0;
    int failures_ = 0;  ///< to make a space, in a row
    bool outdated_ = false;
    /// Allocations of the present state, by group, before the first page that was read late.
    std::array<double, 2> before_late_{};
    RunningMean missing_;  ///< how many of the states missed pages
};

}  // namespace

void keep_shadow(pid_t target, const python::Runtime& runtime, const SiteMap& map,
                 std::span<const PlannedSite> sites, const PatchTable& patches, ShadowShared& shared,
                 const KeeperFiles& files, std::span<const std::span<std::byte>> unmapped_in_shadow) {
    prctl(PR_SET_NAME, "memattach-keep");
    // A thread of the target waits for this one; other work must not come in between. Above the shadow (which
    // ShadowSpace puts to 1), whose time it measures.
    sched_param realtime{};
    realtime.sched_priority = 2;
    sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &realtime);
    give_up_in_time(shared);
    // Waits are 100 µs long and must not be rounded up.
    prctl(PR_SET_TIMERSLACK, 1'000UL);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, nullptr);
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigaction(SIGCHLD, &action, nullptr);
    void* counters =
        ::mmap(nullptr, kCounterBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counters == MAP_FAILED) {
        shared.state.store(ShadowShared::unavailable);
        _exit(1);
    }
    {
        std::optional<Keeper> keeper;  // most targets never need one
        while (true) {
            std::array<pollfd, 2> ready{pollfd{files.wake_fd, POLLIN, 0}, pollfd{files.alive_fd, 0, 0}};
            if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) break;
            if ((ready[1].revents & (POLLHUP | POLLERR)) != 0) break;
            std::uint64_t count = 0;
            if ((ready[0].revents & POLLIN) == 0 || ::read(files.wake_fd, &count, sizeof count) < 0) continue;
            if (keeper) keeper->await_announced();
            const std::uint32_t state = shared.state.load(std::memory_order_acquire);
            if (!keeper)
                keeper.emplace(target, runtime, map, sites, patches, shared,
                               *static_cast<ShadowCounters*>(counters), unmapped_in_shadow, files.notify_fd);
            if (state == ShadowShared::preparing) keeper->prepare();
            if (state == ShadowShared::submitted) keeper->serve();
        }
    }
    _exit(0);
}

}  // namespace memattach::probe
