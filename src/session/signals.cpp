#include "memattach/session/signals.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "memattach/base/error.h"

namespace memattach::session {

Signals::Signals() {
    sigset_t wanted;
    sigemptyset(&wanted);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction action {};
        if (::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) continue;
        sigaddset(&wanted, number);
    }
    fd_.reset(::signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!fd_.is_open()) base::throw_error("signalfd: {}", base::errno_text(errno));
    ::pthread_sigmask(SIG_BLOCK, &wanted, &old_);
}

Signals::~Signals() {
    // Those that came after the session's end were meant for it: they must not kill us while we write.
    while (next()) {
    }
    ::pthread_sigmask(SIG_SETMASK, &old_, nullptr);
}

std::optional<Signals::Signal> Signals::next() {
    signalfd_siginfo info{};
    if (::read(fd_.get(), &info, sizeof(info)) != sizeof(info)) return std::nullopt;
    return Signal{static_cast<int>(info.ssi_signo), info.ssi_code == SI_KERNEL};
}

}  // namespace memattach::session
