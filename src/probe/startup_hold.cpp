#include "memattach/probe/startup_hold.h"

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "memattach/base/error.h"
#include "memattach/probe/patches.h"
#include "memattach/process/memory.h"
#include "memattach/process/proc.h"
#include "remote_module.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kInt3 = 0xCC;

/// Where the kernel lets the program itself begin, once the dynamic linker is done.
std::optional<std::uint64_t> program_entry(pid_t pid) {
    const auto auxv = process::read_file(fmt::format("/proc/{}/auxv", pid), 4096);
    if (!auxv) return std::nullopt;
    for (std::size_t at = 0; at + sizeof(Elf64_auxv_t) <= auxv->size(); at += sizeof(Elf64_auxv_t)) {
        Elf64_auxv_t entry;
        std::memcpy(&entry, auxv->data() + at, sizeof entry);
        if (entry.a_type == AT_ENTRY) return entry.a_un.a_val;
    }
    return std::nullopt;
}

void* signal_number(int signal) {
    return reinterpret_cast<void*>(static_cast<long>(signal));
}

}  // namespace

StartupHold::StartupHold(pid_t pid) : pid_(pid) {
    const long options = PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SEIZE, pid, nullptr, reinterpret_cast<void*>(options)) == 0) state_ = State::waiting;
}

StartupHold::~StartupHold() {
    release();
}

StartupHold::State StartupHold::step() {
    while (state_ == State::waiting) {
        siginfo_t seen{};
        if (waitid(P_PID, static_cast<id_t>(pid_), &seen, WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL) !=
            0) {
            if (errno == EINTR) continue;
            state_ = State::off;
            break;
        }
        if (seen.si_pid == 0) break;
        if (seen.si_code != CLD_TRAPPED && seen.si_code != CLD_STOPPED) {
            state_ = State::off;
            break;
        }
        int status = 0;
        if (waitpid(pid_, &status, WNOHANG | __WALL) == pid_ && WIFSTOPPED(status)) handle_stop(status);
    }
    return state_;
}

void StartupHold::handle_stop(int status) {
    const int signal = WSTOPSIG(status);
    switch (status >> 16) {
        case PTRACE_EVENT_EXEC:
            address_ = 0;
            memory_.reset(::open(fmt::format("/proc/{}/mem", pid_).c_str(), O_RDWR | O_CLOEXEC));
            if (const auto entry = program_entry(pid_)) break_at(*entry, Next::entry);
            ptrace(PTRACE_CONT, pid_, nullptr, nullptr);
            return;
        case PTRACE_EVENT_STOP:
            if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU) {
                ptrace(PTRACE_LISTEN, pid_, nullptr, nullptr);
            } else {
                ptrace(PTRACE_CONT, pid_, nullptr, nullptr);
            }
            return;
        case 0:
            break;
        default:
            ptrace(PTRACE_CONT, pid_, nullptr, nullptr);
            return;
    }
    if (signal != SIGTRAP || !at_breakpoint()) {
        ptrace(PTRACE_CONT, pid_, nullptr, signal_number(signal));
        return;
    }
    if (next_ == Next::run_main) {
        ptrace(PTRACE_DETACH, pid_, nullptr, signal_number(SIGSTOP));
        state_ = State::held;
        return;
    }
    if (const auto run_main = find_run_main()) break_at(*run_main, Next::run_main);
    ptrace(PTRACE_CONT, pid_, nullptr, nullptr);
}

/// Whether this is the trap that was waited for. If so the breakpoint is gone and the thread stands before
/// the instruction that it had replaced.
bool StartupHold::at_breakpoint() {
    siginfo_t info{};
    user_regs_struct regs{};
    if (address_ == 0 || ptrace(PTRACE_GETSIGINFO, pid_, nullptr, &info) != 0 || info.si_code != SI_KERNEL ||
        ptrace(PTRACE_GETREGS, pid_, nullptr, &regs) != 0 || regs.rip != address_ + 1) {
        return false;
    }
    regs.rip = address_;
    clear_breakpoint();
    return ptrace(PTRACE_SETREGS, pid_, nullptr, &regs) == 0;
}

void StartupHold::break_at(std::uint64_t address, Next next) {
    const auto original = read_word(memory_.get(), address, 1);
    if (!original || *original == kInt3) return;
    address_ = last_address_ = address;
    original_ = *original;
    next_ = next;
    if (!write_word(memory_.get(), address, kInt3, 1)) address_ = 0;
}

void StartupHold::clear_breakpoint() {
    if (address_ != 0) write_word(memory_.get(), address_, original_, 1);
    address_ = 0;
}

std::optional<std::uint64_t> StartupHold::find_run_main() const {
    const process::LiveMemory memory(pid_);
    const auto exe = process::read_link(fmt::format("/proc/{}/exe", pid_));
    for (const RemoteModule& module : loaded_modules(pid_, memory, exe.value_or(""))) {
        if (const auto symbol = module.find("Py_RunMain")) return symbol->address.value();
    }
    return std::nullopt;
}

void StartupHold::release() {
    if (state_ == State::held) ::kill(pid_, SIGCONT);
    if (state_ == State::waiting) {
        // Where it is stopped in the end, a trap at the breakpoint may be what stopped it.
        ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr);
        clear_breakpoint();
        siginfo_t seen{};
        while (waitid(P_PID, static_cast<id_t>(pid_), &seen, WEXITED | WSTOPPED | WNOWAIT | __WALL) == 0 ||
               errno == EINTR) {
            if (seen.si_code != CLD_TRAPPED && seen.si_code != CLD_STOPPED) break;
            int status = 0;
            if (waitpid(pid_, &status, __WALL) != pid_) continue;
            if (status >> 16 == 0) {
                const int signal = WSTOPSIG(status);
                siginfo_t info{};
                user_regs_struct regs{};
                if (signal == SIGTRAP && last_address_ != 0 &&
                    ptrace(PTRACE_GETSIGINFO, pid_, nullptr, &info) == 0 && info.si_code == SI_KERNEL &&
                    ptrace(PTRACE_GETREGS, pid_, nullptr, &regs) == 0 && regs.rip == last_address_ + 1) {
                    regs.rip = last_address_;
                    ptrace(PTRACE_SETREGS, pid_, nullptr, &regs);
                    ptrace(PTRACE_CONT, pid_, nullptr, nullptr);
                } else {
                    ptrace(PTRACE_CONT, pid_, nullptr, signal_number(signal));
                }
                continue;
            }
            ptrace(PTRACE_DETACH, pid_, nullptr, nullptr);
            break;
        }
    }
    state_ = State::off;
}

}  // namespace memattach::probe
