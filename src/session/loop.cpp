#include "memattach/session/loop.h"

#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <utility>

#include "memattach/base/clock.h"
#include "memattach/base/error.h"

namespace memattach::session {
namespace {

/// How long before a due time sleeping ends and spinning begins: what a wake-up from sleep may take.
constexpr std::uint64_t kSpinNs = 80'000;
constexpr std::uint64_t kPollEveryNs = 1'000'000;

}  // namespace

Loop::Loop(bool precise) : precise_(precise), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (!epoll_.is_open()) base::throw_error("epoll_create1: {}", base::errno_text(errno));
    timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!timer_.is_open()) base::throw_error("timerfd_create: {}", base::errno_text(errno));
    watch(timer_.get(), [this] {
        std::uint64_t expirations = 0;
        static_cast<void>(!::read(timer_.get(), &expirations, sizeof(expirations)));
        armed_for_ns_ = probe::Source::kNever;
    });
    // The kernel delays wake-ups by up to 50 µs to batch them, unless asked not to (prctl(2)).
    ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    // With one CPU, spinning would keep the target from running.
    if (::sysconf(_SC_NPROCESSORS_ONLN) < 2) precise_ = false;
}

void Loop::watch(Watched watched) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = ++next_id_;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, watched.fd, &event) != 0)
        base::throw_error("epoll_ctl: {}", base::errno_text(errno));
    ids_[watched.fd] = next_id_;
    watched_.emplace(next_id_, std::move(watched));
}

void Loop::add(int fd, probe::Source& source, std::uint64_t token) {
    watch({fd, &source, token, {}});
}

void Loop::watch(int fd, std::function<void()> ready) {
    watch({fd, nullptr, 0, std::move(ready)});
}

void Loop::remove(int fd) {
    const auto found = ids_.find(fd);
    if (found == ids_.end()) return;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    watched_.erase(found->second);
    ids_.erase(found);
}

void Loop::add(probe::Source& source) {
    sources_.push_back(&source);
}

void Loop::remove(probe::Source& source) {
    std::erase(sources_, &source);
    std::vector<int> fds;
    for (const auto& [id, watched] : watched_)
        if (watched.source == &source) fds.push_back(watched.fd);
    for (const int fd : fds) remove(fd);
}

void Loop::every(std::uint64_t period_ns, std::function<void()> work) {
    repeated_.push_back({period_ns, base::monotonic_ns() + period_ns, std::move(work)});
}

std::uint64_t Loop::next_due_ns() const {
    std::uint64_t due = probe::Source::kNever;
    for (const auto* source : sources_) due = std::min(due, source->due_ns());
    for (const auto& repeated : repeated_) due = std::min(due, repeated.due_ns);
    return due;
}

/// A timer that goes off too early does no harm, so it is set anew only where it would be late: waiting with
/// a timeout would set and cancel one for each sample, which costs more than reading the stack in a virtual
/// machine.
void Loop::arm_timer(std::uint64_t due_ns) {
    if (due_ns >= armed_for_ns_) return;
    itimerspec when{};
    when.it_value.tv_sec = static_cast<std::time_t>(due_ns / 1'000'000'000);
    when.it_value.tv_nsec = static_cast<long>(due_ns % 1'000'000'000);
    if (::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr) != 0)
        base::throw_error("timerfd_settime: {}", base::errno_text(errno));
    armed_for_ns_ = due_ns;
}

void Loop::poll_descriptors(bool may_wait) {
    std::array<epoll_event, 64> events;
    const int count =
        ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), may_wait ? -1 : 0);
    if (count < 0 && errno != EINTR) base::throw_error("epoll_wait: {}", base::errno_text(errno));
    for (int i = 0; i < count; ++i) {
        const epoll_event& event = events[static_cast<std::size_t>(i)];
        // What was served before in this round may have removed it.
        const auto found = watched_.find(event.data.u64);
        if (found == watched_.end()) continue;
        if (found->second.source != nullptr) {
            found->second.source->on_ready(found->second.token, (event.events & (EPOLLHUP | EPOLLERR)) != 0);
        } else {
            const auto ready = found->second.ready;
            ready();
        }
    }
}

bool Loop::may_spin() const {
    return precise_ &&
           std::all_of(sources_.begin(), sources_.end(), [](const auto* s) { return s->may_spin(); });
}

void Loop::wait(std::uint64_t due_ns) {
    const std::uint64_t now = base::monotonic_ns();
    const std::uint64_t left = due_ns > now ? due_ns - now : 0;
    if (!may_spin()) {
        if (left > 0) arm_timer(due_ns);
        poll_descriptors(left > 0);
        last_poll_ns_ = now;
        return;
    }
    if (left > kSpinNs) {
        arm_timer(due_ns - kSpinNs);
        poll_descriptors(true);
        last_poll_ns_ = base::monotonic_ns();
    } else if (now - last_poll_ns_ > kPollEveryNs) {
        poll_descriptors(false);
        last_poll_ns_ = now;
    }
    const std::uint64_t spin_from = base::monotonic_ns();
    if (due_ns > spin_from && due_ns - spin_from <= kSpinNs)
        while (base::monotonic_ns() < due_ns) __builtin_ia32_pause();
}

void Loop::run() {
    while (!stopped_) {
        wait(posted_.empty() ? next_due_ns() : 0);
        if (stopped_) return;
        const std::uint64_t now = base::monotonic_ns();
        for (std::size_t i = 0; i < sources_.size(); ++i)
            if (sources_[i]->due_ns() <= now) sources_[i]->on_time(now);
        for (std::size_t i = 0; i < repeated_.size() && !stopped_; ++i) {
            if (repeated_[i].due_ns > now) continue;
            repeated_[i].due_ns = std::max(repeated_[i].due_ns + repeated_[i].period_ns, now + 1);
            const auto work = repeated_[i].work;
            work();
        }
        if (!posted_.empty()) {
            const auto posted = std::exchange(posted_, {});
            for (const auto& work : posted) work();
        }
    }
}

}  // namespace memattach::session
