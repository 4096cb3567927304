#include "memattach/session/signals.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>

#include "memattach/base/error.h"

namespace memattach::session {
namespace {

constexpr std::array kNumbers = {SIGINT, SIGTERM, SIGHUP};

}  // namespace

Signals::Signals() {
    sigemptyset(&wanted_);
    for (const int number : kNumbers) {
        struct sigaction action {};
        if (::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) continue;
        sigaddset(&wanted_, number);
    }
    fd_.reset(::signalfd(-1, &wanted_, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!fd_.is_open()) base::throw_error("signalfd: {}", base::errno_text(errno));
    ::pthread_sigmask(SIG_BLOCK, &wanted_, &old_);
}

Signals::~Signals() {
    // Those that come after the session's end were meant for it: they must not kill us while we write.
    struct sigaction once {};
    once.sa_handler = [](int) {};
    once.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
    for (const int number : kNumbers)
        if (sigismember(&wanted_, number) == 1) ::sigaction(number, &once, nullptr);
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
