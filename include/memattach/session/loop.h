#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "memattach/base/unique_fd.h"
#include "memattach/probe/source.h"

namespace memattach::session {

/// The one loop of a session: waits for descriptors and for the next due time, whichever is first.
///
///     Loop loop(precise);
///     loop.watch(signals.fd(), [&] { … loop.stop(); });
///     loop.add(sampler);
///     loop.run();
///
/// `precise` is for rates above those that a sleeping process can keep: the last microseconds before a due
/// time are spun away, and descriptors are looked at every millisecond only.
class Loop final : public probe::Poller {
  public:
    explicit Loop(bool precise);

    void add(int fd, probe::Source& source, std::uint64_t token) override;
    void remove(int fd) override;
    void watch(int fd, std::function<void()> ready);

    /// Serves the source's due times. It must outlive the loop or be removed.
    void add(probe::Source& source);
    void remove(probe::Source& source);
    /// Calls `work` about every `period_ns`.
    void every(std::uint64_t period_ns, std::function<void()> work);
    /// Calls `work` once, soon, outside of any source's or handler's call.
    void post(std::function<void()> work) { posted_.push_back(std::move(work)); }

    void run();
    void stop() { stopped_ = true; }

  private:
    struct Watched {
        int fd = -1;
        probe::Source* source = nullptr;
        std::uint64_t token = 0;
        std::function<void()> ready;
    };
    struct Repeated {
        std::uint64_t period_ns;
        std::uint64_t due_ns;
        std::function<void()> work;
    };
    void watch(Watched watched);
    void wait(std::uint64_t due_ns);
    void arm_timer(std::uint64_t due_ns);
    void poll_descriptors(bool may_wait);
    [[nodiscard]] bool may_spin() const;
    [[nodiscard]] std::uint64_t next_due_ns() const;

    bool precise_;
    bool stopped_ = false;
    std::uint64_t last_poll_ns_ = 0;
    base::UniqueFd epoll_;
    base::UniqueFd timer_;
    std::uint64_t armed_for_ns_ = probe::Source::kNever;
    std::uint64_t next_id_ = 0;
    std::unordered_map<std::uint64_t, Watched> watched_;  ///< by an id that is never used again
    std::unordered_map<int, std::uint64_t> ids_;          ///< by descriptor
    std::vector<probe::Source*> sources_;
    std::vector<Repeated> repeated_;
    std::vector<std::function<void()>> posted_;
};

}  // namespace memattach::session
