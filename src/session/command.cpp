#include "memattach/session/command.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/base/unique_fd.h"
#include "memattach/session/descriptor_limit.h"
#include "memattach/session/priority.h"

namespace memattach::session {

Command::Command(const std::vector<std::string>& arguments, const sigset_t& mask,
                 const std::function<void(pid_t)>& before_exec) {
    std::vector<char*> pointers;
    for (const std::string& argument : arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
    pointers.push_back(nullptr);
    // The write end closes when exec succeeds; else the child sends its errno through it.
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) base::throw_error("pipe: {}", base::errno_text(errno));
    base::UniqueFd read_end(ends[0]), write_end(ends[1]);
    // The child goes on when the write end of this one is closed.
    std::array<int, 2> gate{};
    if (::pipe2(gate.data(), O_CLOEXEC) != 0) base::throw_error("pipe: {}", base::errno_text(errno));
    base::UniqueFd gate_read(gate[0]), gate_write(gate[1]);
    pid_ = ::fork();
    if (pid_ < 0) base::throw_error("fork: {}", base::errno_text(errno));
    if (pid_ == 0) {
        gate_write.reset();
        char byte = 0;
        while (::read(gate_read.get(), &byte, 1) < 0 && errno == EINTR) {
        }
        ::sigprocmask(SIG_SETMASK, &mask, nullptr);
        ::signal(SIGPIPE, SIG_DFL);
        SamplingPriority::give_up();
        DescriptorLimit::give_up();
        ::execvp(pointers[0], pointers.data());
        const int error = errno;
        static_cast<void>(!::write(write_end.get(), &error, sizeof(error)));
        ::_exit(127);
    }
    write_end.reset();
    if (before_exec) before_exec(pid_);
    gate_write.reset();
    int error = 0;
    ssize_t bytes = 0;
    do {
        bytes = ::read(read_end.get(), &error, sizeof(error));
    } while (bytes < 0 && errno == EINTR);
    if (bytes == sizeof(error)) {
        int status = 0;
        ::waitpid(pid_, &status, 0);
        base::throw_error("cannot run '{}': {}", base::printable(arguments.front(), 200),
                          base::errno_text(error));
    }
}

std::optional<int> Command::poll_status() {
    int status = 0;
    if (!status_ && ::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
    return status_;
}

int Command::wait() {
    int status = 0;
    while (!status_) {
        const pid_t waited = ::waitpid(pid_, &status, 0);
        if (waited == pid_) status_ = status;
        if (waited < 0 && errno != EINTR) status_ = 0;
    }
    return *status_;
}

}  // namespace memattach::session
