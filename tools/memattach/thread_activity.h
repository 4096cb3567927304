#pragma once

#include <string>

namespace memattach::cli {

/// What a thread is doing, as the kernel tells it without stopping the thread.
struct Activity {
    bool running = false;     ///< on a processor or ready to be
    std::string state;        ///< "running", "waiting", "uninterruptible", "stopped", "traced", "ended"
    std::string system_call;  ///< "futex", "read"; empty where it is in none or where it can't be told
    unsigned long first_argument = 0;  ///< of the system call
    std::string object;  ///< what that waits on: "fd 5 (socket:[1234])"; empty where nothing tells
};

Activity thread_activity(int pid, int tid);

/// The kernel's name of the thread (15 bytes at most), which is Python's own name for it from 3.14 on.
std::string thread_name(int pid, int tid);

/// "running", "waiting for a lock (futex)", "waiting in read on fd 5 (socket:[1234])"
std::string describe(const Activity& activity);

/// Parses /proc/PID/task/TID/syscall: "running", or the call's number and arguments. Kept apart for tests.
struct SystemCall {
    long number = -1;  ///< -1: in none, or blocked outside of one
    unsigned long first_argument = 0;
};
SystemCall parse_syscall(const std::string& text);

}  // namespace memattach::cli
