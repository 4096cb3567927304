#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "give_up.h"
#include "memattach/base/clock.h"
#include "memattach/probe/stop_clock.h"
#include "memattach/process/proc.h"
#include "shadow_timing.h"

namespace memattach::probe {
namespace {

constexpr double kShortestNs = 15'000, kManyAllocations = 16;
/// No program allocates faster: less is an error of what was taken off.
constexpr double kShortestGapNs = 10;
/// How much slower the target's processor is than this one: so often a way is gone on both, and more often at
/// first. On a virtual machine one is half as fast as the other by turns, as its host runs something next to
/// it. That is told for each state by fixed work on both (processor_speed.h); what stays, of many
/// comparisons, is another difference.
constexpr std::uint64_t kCompareEveryNs = 500'000'000, kCompareFirstNs = 150'000'000,
                        kForgetNs = 10'000'000'000;
constexpr double kFirstCompared = 6, kComparedMemory = 32;
/// As if so many had been made that found none.
constexpr double kAlike = 4;
constexpr double kMostSlower = 4;
/// Logarithm: more than that isn't the processor.
constexpr double kMostSlowness = 0.9;
/// How far off own time may be for all shadows of a session together, where comparisons agree; how much of
/// how they differ is in it too, however many there are; and how they are taken to differ before there have
/// been any, as if there had been so many.
constexpr double kShadowSpread = 0.06, kLasting = 0.35, kUnknownSpread = 0.3, kSupposed = 2;
/// So often the shadow is made anew: what was code or a constant then may be something else by now.
constexpr int kRunsPerSpace = 512;
constexpr int kMostFailures = 3;
/// Pages that a run may still miss without being spoilt by it.
constexpr std::size_t kFewPages = 4;
/// Where fewer of the last states missed more than that, nobody waits until the next has found its pages. One
/// that was spoilt by it counts as several: windows that are left out are those in which the program goes
/// through fresh memory, and their allocations with them.
constexpr double kTrusted = 0.3, kSpoilt = 3, kTrustMemory = 8, kStatesToTrust = 4;

/// How much longer a way takes on the processor of the target's thread than on the shadow's, but for what
/// fixed work tells.
struct Speed {
    RunningMean log_ratio{0, kAlike}, squares{kUnknownSpread * kUnknownSpread, kSupposed};
    std::uint64_t compared_ns = 0;
    bool has_failed = false;

    void add(double log) {
        log_ratio.add(log, kComparedMemory);
        squares.add(log * log, kComparedMemory);
    }
    /// How far off own time may be, relative, one σ.
    [[nodiscard]] double spread() const {
        const double variance = std::max(squares.value - log_ratio.value * log_ratio.value, 0.0);
        return std::sqrt(kShadowSpread * kShadowSpread +
                         variance * (1 / squares.count + kLasting * kLasting));
    }
};

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
          sampler_(target, memory_, runtime, map, sites, counters),
          timing_(shared, counters, pages_, sampler_) {
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
        if (space_) pages_.learn(*space_, finds_most());
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
        timing_.set_space(nullptr);
        space_.reset();
        if (pages_.data_fd() < 0) return false;
        mappings_ = process::read_maps(target_);
        // A run takes 25 µs instead of 10 where the shadow has to wake another processor at its end: it
        // starts where this process is, and stays there.
        choose_cpu();
        const ShadowSpace::Options options{memory_,   mappings_,  sites_,
                                           unmapped_, &counters_, pages_.data_fd()};
        space_ = std::make_unique<ShadowSpace>(options);
        if (!space_->is_ready()) {
            space_.reset();
            return false;
        }
        timing_.set_space(space_.get());
        space_->kernel().set_pid(process::namespace_tid(target_, target_).value_or(0));
        pages_.begin_space(*space_, mappings_);
        runs_ = 0;
        outdated_ = false;
        failures_ = 0;
        return true;
    }

    void measure() {
        if (!space_) return;
        const auto windows = std::span(shared_.windows).first(shared_.window_count);
        double wanted_ns = 0;
        for (const ShadowWindow& window : windows) wanted_ns = std::max(wanted_ns, window.own_ns);
        counters_.watched.fill(ShadowCounters::kNobody);
        counters_.big_bytes = ShadowCounters::kNever;
        const double rest_ns = std::clamp(wanted_ns, kShortestNs, 10e6);
        choose_cpu();
        // The clock stands still in a run. What the program waits for by the clock and would come within the
        // window comes in it so, and nothing else does: by the end of the window it will have come as often.
        timing_.begin_state(windows[0].start_wall_ns + static_cast<std::uint64_t>(rest_ns));
        const auto when_read = [&] {
            sampler_.see_stack(shared_.registers.fs_base);
            if (finds_most()) release();
        };
        if (space_->replaces(shared_.registers.rip) || !pages_.begin_state(when_read)) {
            spoil();
            return;
        }
        const double factor = slower();
        Way way = timing_.find_way(rest_ns, factor, [this] { release(); });
        release();
        if (way.is_gone) {
            outdated_ = true;
            return;
        }
        if (way.full.is_cut && way.full.run.end == ShadowSpace::End::stopped) check_layout();
        const bool misses_page = way.full.run.end == ShadowSpace::End::missing_page;
        const bool finds_pages = !misses_page && way.missed <= kFewPages;
        const bool goes_astray = way.full.is_cut && pages_.late() > 0 && space_->has_faulted();
        missing_.add(goes_astray ? kSpoilt : finds_pages ? 0 : 1, kTrustMemory);
        if (goes_astray) way = timing_.way_before_late(rest_ns, factor);
        if (!way.is_known) {
            spoil();
            return;
        }
        note_slowness();
        way.own_ns *= slower() / factor;
        compare_processors(way);
        tell(windows, way, rest_ns);
    }

    [[nodiscard]] Speed speed() const {
        const auto known = speeds_.find({shared_.tracer_cpu, cpu_});
        return known == speeds_.end() ? Speed() : known->second;
    }

    /// What ShadowTiming's time is to be multiplied with.
    [[nodiscard]] double slower() const { return std::exp(speed().log_ratio.value + log_slower_); }

    void note_slowness() {
        const double there = shared_.slowness_there.load(std::memory_order_acquire);
        if (there > 0) log_slower_ = std::clamp(timing_.log_slower(there), -kMostSlowness, kMostSlowness);
    }

    void compare_processors(const Way& way) {
        const int there = shared_.tracer_cpu;
        if (there < 0 || there == cpu_ || !CPU_ISSET(static_cast<std::size_t>(there), &allowed_)) return;
        const std::size_t marks = ShadowTiming::comparable(way);
        if (marks == 0) return;
        Speed& speed = speeds_[{there, cpu_}];
        const std::uint64_t start_ns = base::monotonic_ns();
        const std::uint64_t age_ns = start_ns - speed.compared_ns;
        if (age_ns > kForgetNs) speed = {};
        const bool is_known = speed.log_ratio.count >= kAlike + kFirstCompared;
        const std::uint64_t every_ns = is_known || speed.has_failed ? kCompareEveryNs : kCompareFirstNs;
        if (age_ns < every_ns) return;
        const double waited_ns = waited_so_far();
        const bool is_there = move_to(there);
        const auto there_ns = is_there ? timing_.time_to(way, marks) : std::nullopt;
        move_to(cpu_);
        speed.compared_ns = base::monotonic_ns();
        shared_.results[0].taken_ns += std::max(waited_so_far() - waited_ns, 0.0);
        const auto here_ns = there_ns ? timing_.time_to(way, marks) : std::nullopt;
        speed.has_failed = !here_ns || *here_ns <= 0;
        if (speed.has_failed) return;
        speed.add(std::log(std::clamp(*there_ns / *here_ns, 1 / kMostSlower, kMostSlower)));
    }

    /// For how long the target's thread has been ready to run, and something else ran; ns.
    [[nodiscard]] double waited_so_far() const {
        const auto text = process::read_proc(shared_.tid, "schedstat");
        const auto stat = text ? process::parse_schedstat(*text) : std::nullopt;
        return stat ? static_cast<double>(stat->waiting_ns) : 0;
    }

    void tell(std::span<const ShadowWindow> windows, const Way& way, double rest_ns) {
        const Timed& full = way.full;
        // Forged counters can't say more than a processor can do.
        if (full.all_hits() > 1e3 + way.own_ns) return;
        // What comes behind a page that can't be had, or a system call, isn't known. The window stays one:
        // leaving out all those would leave out what is allocated before. A few microseconds with an
        // allocation or two must not stand for a span, though.
        const double least_ns =
            full.allocations[0] + full.allocations[1] < kManyAllocations ? std::min(rest_ns, kShortestNs) : 0;
        const double told_ns = std::max({way.own_ns, least_ns, kShortestGapNs * full.all_hits()});
        for (std::size_t i = 0; i < windows.size(); ++i) {
            const std::size_t group = group_of(windows[i].group);
            if (!space_->counts(group)) continue;
            shared_.results[i].complete = way.is_whole;
            sample(windows[i], told_ns, full.hits[group], full.allocations[group], shared_.results[i]);
        }
    }

    void spoil() {
        for (ShadowResult& result : shared_.results) result.spoilt = true;
    }

    [[nodiscard]] bool finds_most() const {
        return missing_.count >= kStatesToTrust && missing_.value < kTrusted;
    }

    /// Next to the shadow, each waking the other, and not where the tracing process waits.
    void choose_cpu() {
        const int taken = shared_.tracer_cpu;
        if (cpu_ >= 0 && cpu_ != taken) return;
        cpu_set_t allowed = allowed_;
        if (taken >= 0 && CPU_COUNT(&allowed) > 1) CPU_CLR(static_cast<std::size_t>(taken), &allowed);
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) continue;
            move_to(cpu_ = cpu);
            return;
        }
    }

    bool move_to(int cpu) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(static_cast<std::size_t>(cpu), &one);
        return sched_setaffinity(0, sizeof one, &one) == 0 && (!space_ || space_->set_cpu(cpu));
    }

    void sample(const ShadowWindow& window, double own_ns, double hits, double allocations,
                ShadowResult& result) {
        if (!timing_.restore_for_sampling()) return;
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
        end.own_spread = window.own_spread + speed().spread();
        for (const auto kind : {trace::AllocKind::malloc, trace::AllocKind::mmap, trace::AllocKind::object}) {
            if (group_of(kind) != group_of(window.group)) continue;
            end.kind = kind;
            shared_.ring.write(end, sampler_.seen_stack());
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

    pid_t target_;
    process::LiveMemory memory_;
    std::span<const PlannedSite> sites_;
    ShadowShared& shared_;
    ShadowCounters& counters_;
    std::span<const std::span<std::byte>> unmapped_;
    int notify_fd_;
    ShadowPages pages_;
    ShadowSampler sampler_;
    ShadowTiming timing_;
    std::vector<process::Mapping> mappings_;
    std::unique_ptr<ShadowSpace> space_;
    int cpu_ = -1;  ///< where this process and the shadow are, next to each other
    cpu_set_t allowed_;
    std::map<std::pair<int, int>, Speed> speeds_;  ///< by there and here
    double log_slower_ = 0;                        ///< ShadowTiming::log_slower() of the target's processor
    int runs_ = 0;
    int failures_ = 0;  ///< to make a space, in a row
    bool outdated_ = false;
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
