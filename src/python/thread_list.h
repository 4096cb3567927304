#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "memattach/process/memory.h"
#include "memattach/python/layout.h"
#include "memattach/python/reader.h"

namespace memattach::python {

/// Lists the thread states of all interpreters, and says which kernel thread each belongs to.
///
/// 3.11+ keep the kernel's thread id in the thread state, as the target's own pid namespace has it; the
/// kernel tells both ids in the NSpid line of /proc/PID/task/TID/status. Before 3.11 there is the pthread_t
/// only, which on glibc and musl is the address of a structure that holds the thread id at some offset: the
/// one offset at which every thread of the process has one of its thread ids, no two the same.
///
/// Up to 3.12 a thread that runs code in a subinterpreter does so on the state that was made with the
/// interpreter, which goes on saying that it is its creator's (_run_script_in_interpreter() in
/// Modules/_xxsubinterpretersmodule.c). 3.11 and 3.12 keep the eval loop's struct _PyCFrame on the C stack,
/// and the stack's owner has its struct pthread at the upper end of the same mapping. 3.8 to 3.10 tell
/// nothing: where both states have frames, whose the inner one's are isn't known.
class ThreadList {
  public:
    ThreadList(const process::Memory& memory, const Runtime& runtime, int pid);

    [[nodiscard]] std::vector<ThreadState> read();

  private:
    struct Ids {
        std::set<std::int32_t> inner;                   ///< thread ids in the target's pid namespace
        std::map<std::int32_t, std::int32_t> outer_of;  ///< to ours
    };
    [[nodiscard]] Ids task_ids() const;
    void add_threads_of(base::Address interpreter, std::int64_t id, std::vector<ThreadState>& out) const;
    void find_runners(std::vector<ThreadState>& threads) const;
    void find_runners_by_stack(std::vector<ThreadState>& threads) const;
    void leave_open_who_runs(std::vector<ThreadState>& threads) const;
    void tids_from_pthreads(std::vector<ThreadState>& threads, const Ids& ids);

    const process::Memory& memory_;
    Runtime runtime_;
    int pid_;
    std::set<std::uint32_t> tid_offsets_;  ///< within struct pthread, that all threads seen so far agree on
    bool tid_offset_known_ = false;
};

}  // namespace memattach::python
