#pragma once

#include <csignal>
#include <optional>

#include "memattach/base/unique_fd.h"

namespace memattach::session {

/// Turns SIGINT, SIGTERM and SIGHUP into something to poll while it lives, so that nothing of the session is
/// ever interrupted half-way. Signals that were ignored before (nohup) stay ignored. When it has ended, the
/// next one of each does nothing, since what is to be written then ends by itself; the one behind it kills.
class Signals {
  public:
    Signals();
    ~Signals();
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;

    [[nodiscard]] int fd() const { return fd_.get(); }

    struct Signal {
        int number = 0;
        bool from_terminal = false;  ///< the whole foreground process group has got it
    };
    std::optional<Signal> next();
    /// The mask as it was: a started command must get it back.
    [[nodiscard]] const sigset_t& old_mask() const { return old_; }

  private:
    base::UniqueFd fd_;
    sigset_t wanted_{}, old_{};
};

}  // namespace memattach::session
