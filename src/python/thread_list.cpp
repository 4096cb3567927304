#include "thread_list.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "memattach/base/unique_fd.h"
#include "memattach/process/maps.h"
#include "memattach/process/proc.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxInterpreters = 1024;
constexpr std::size_t kMaxThreads = 65'536;
/// How far into struct pthread the thread id is looked for: glibc has it at 0x2d0, musl at 0x30 (0x38
/// before 1.2).
constexpr std::uint32_t kMaxPthreadBytes = 1024;

/// The first and the last number of "NSpid:\t4242\t17": ours and the innermost namespace's; 0 where there is
/// none.
std::pair<std::int32_t, std::int32_t> namespace_ids(std::string_view status) {
    constexpr std::string_view kLabel = "\nNSpid:";
    const std::size_t at = status.find(kLabel);
    if (at == std::string_view::npos) return {};
    const std::string line(status.substr(at + kLabel.size(), status.find('\n', at + 1) - at - kLabel.size()));
    std::int32_t first = 0;
    std::int32_t last = 0;
    const char* text = line.c_str();
    for (;;) {
        char* end = nullptr;
        const long value = std::strtol(text, &end, 10);
        if (end == text) return {first, last};
        last = static_cast<std::int32_t>(value);
        if (first == 0) first = last;
        text = end;
    }
}

/// namespace_ids of a status file; `id` twice where it can't be read or says nothing (kernels before 4.1).
std::pair<std::int32_t, std::int32_t> ids_of(const std::string& path, std::int32_t id) {
    const base::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::array<char, 4096> text;
    const ssize_t got = file.is_open() ? ::read(file.get(), text.data(), text.size()) : -1;
    if (got <= 0) return {id, id};
    const auto ids = namespace_ids({text.data(), static_cast<std::size_t>(got)});
    return ids.first != 0 ? ids : std::pair{id, id};
}

}  // namespace

ThreadList::ThreadList(const process::Memory& memory, const Runtime& runtime, int pid)
    : memory_(memory), runtime_(runtime), pid_(pid) {}

ThreadList::Ids ThreadList::task_ids() const {
    Ids ids;
    if (pid_ <= 0) return ids;
    DIR* directory = ::opendir(fmt::format("/proc/{}/task", pid_).c_str());
    if (directory == nullptr) return ids;
    // In our own pid namespace both ids are one, and there is nothing to read for each thread.
    const auto [outer_pid, inner_pid] = ids_of(fmt::format("/proc/{}/status", pid_), pid_);
    const bool translate = outer_pid != inner_pid;
    while (const dirent* entry = ::readdir(directory)) {
        const int tid = std::atoi(entry->d_name);
        if (tid <= 0) continue;
        const std::int32_t inner =
            translate ? ids_of(fmt::format("/proc/{}/task/{}/status", pid_, tid), tid).second : tid;
        ids.inner.insert(inner);
        ids.outer_of[inner] = tid;
    }
    ::closedir(directory);
    return ids;
}

void ThreadList::add_threads_of(base::Address interpreter, std::int64_t id,
                                std::vector<ThreadState>& out) const {
    const auto& layout = runtime_.layout;
    const auto field = [](std::span<const std::byte> bytes, Offset offset) {
        std::uint64_t value = 0;
        if (offset != kAbsent) std::memcpy(&value, bytes.data() + offset, sizeof value);
        return value;
    };
    Offset end = 0;
    for (const Offset offset : {layout.thread.next, layout.thread.interp, layout.thread.thread_id,
                                layout.thread.native_thread_id}) {
        if (offset != kAbsent) end = std::max(end, offset + 8);
    }
    constexpr Offset kMaxThreadBytes = 1U << 16U;
    if (end > kMaxThreadBytes) return;
    std::vector<std::byte> bytes(end);
    const auto head = memory_.read_address(interpreter + layout.interpreter.threads_head);
    std::unordered_set<base::Address> seen;
    for (base::Address at = head.value_or(base::Address()); !at.is_null() && out.size() < kMaxThreads;) {
        if (!seen.insert(at).second || !memory_.read_exactly(at, bytes)) return;
        // A thread state that was freed meanwhile, or is none.
        if (layout.thread.interp != kAbsent && field(bytes, layout.thread.interp) != interpreter.value())
            return;
        ThreadState thread;
        thread.address = at;
        thread.interpreter = interpreter;
        thread.interpreter_id = id;
        thread.pthread = base::Address(field(bytes, layout.thread.thread_id));
        thread.tid = static_cast<std::int32_t>(field(bytes, layout.thread.native_thread_id));
        out.push_back(thread);
        at = base::Address(field(bytes, layout.thread.next));
    }
}

void ThreadList::tids_from_pthreads(std::vector<ThreadState>& threads, const Ids& ids) {
    using Words = std::array<std::int32_t, kMaxPthreadBytes / 4>;
    std::map<base::Address, Words> read;  // a thread may have a state in several interpreters
    for (const ThreadState& thread : threads) {
        if (thread.pthread.is_null() || read.contains(thread.pthread)) continue;
        Words& words = read[thread.pthread];
        words.fill(0);
        // A short read is fine: the thread id lies near the start, the end of the page may be the end of the
        // mapping.
        (void)memory_.read_up_to(thread.pthread, std::as_writable_bytes(std::span(words)));
    }
    std::set<std::uint32_t> fitting;
    for (std::uint32_t i = 0; i < Words{}.size(); ++i) {
        if (tid_offset_known_ && !tid_offsets_.contains(i)) continue;
        std::set<std::int32_t> distinct;
        const bool all = std::all_of(read.begin(), read.end(), [&](const auto& pair) {
            const std::int32_t value = pair.second[i];
            return ids.inner.contains(value) && distinct.insert(value).second;
        });
        if (all && !read.empty()) fitting.insert(i);
    }
    // Threads that begin or end meanwhile can make all offsets fail: what was known then stays.
    if (!fitting.empty()) {
        tid_offsets_ = fitting;
        tid_offset_known_ = true;
    }
    if (tid_offsets_.empty()) return;
    for (ThreadState& thread : threads) {
        const auto found = read.find(thread.pthread);
        if (found == read.end()) continue;
        const std::int32_t value = found->second[*tid_offsets_.begin()];
        if (ids.inner.contains(value)) thread.tid = value;
    }
}

void ThreadList::find_runners(std::vector<ThreadState>& threads) const {
    if (runtime_.layout.runners_own_state || threads.empty() ||
        threads.front().interpreter == threads.back().interpreter)
        return;
    if (runtime_.layout.thread.cframe != kAbsent) {
        find_runners_by_stack(threads);
    } else {
        leave_open_who_runs(threads);
    }
}

void ThreadList::find_runners_by_stack(std::vector<ThreadState>& threads) const {
    const auto& layout = runtime_.layout.thread;
    const std::uint64_t size = layout.size == kAbsent ? 1024 : layout.size;
    std::map<base::Address, std::uint64_t> places;  // on a C stack, by state
    for (const ThreadState& thread : threads) {
        const std::uint64_t cframe =
            memory_.read_address(thread.address + layout.cframe).value_or(base::Address()).value();
        // What runs nothing points into its own state.
        const bool idle = cframe - thread.address.value() < size;
        places[thread.address] = idle ? 0 : cframe;
    }
    const base::Address main_interpreter = threads.back().interpreter;
    std::vector<std::pair<base::Address, std::int32_t>> owners;  // of stacks
    base::Address main_thread;
    for (const ThreadState& thread : threads) {
        if (thread.interpreter != main_interpreter) continue;
        owners.emplace_back(thread.pthread, thread.tid);
        if (thread.tid == pid_) main_thread = thread.pthread;
    }
    std::sort(owners.begin(), owners.end());
    std::vector<process::Mapping> maps;
    for (ThreadState& thread : threads) {
        const base::Address place(places[thread.address]);
        if (thread.interpreter == main_interpreter || place.is_null()) continue;
        if (maps.empty()) maps = process::read_maps(pid_);
        const process::Mapping* mapping = process::find_mapping(maps, place);
        if (mapping != nullptr && mapping->path == "[stack]") {
            thread.tid = pid_;
            thread.pthread = main_thread;
            continue;
        }
        const auto owner = std::upper_bound(owners.begin(), owners.end(), std::pair{place, std::int32_t{0}});
        const bool known = mapping != nullptr && owner != owners.end() && mapping->contains(owner->first);
        thread.tid = known ? owner->second : 0;
        thread.pthread = known ? owner->first : base::Address();
    }
    // Stacks grow downwards.
    std::stable_sort(threads.begin(), threads.end(), [&](const ThreadState& a, const ThreadState& b) {
        return places[a.address] < places[b.address];
    });
}

void ThreadList::leave_open_who_runs(std::vector<ThreadState>& threads) const {
    const auto runs = [&](const ThreadState& thread) {
        const auto frame = memory_.read_address(thread.address + runtime_.layout.thread.frame);
        return frame && !frame->is_null();
    };
    std::map<base::Address, std::size_t> states;
    for (const ThreadState& thread : threads) ++states[thread.pthread];
    std::map<base::Address, std::vector<ThreadState*>> running;
    for (ThreadState& thread : threads)
        if (states[thread.pthread] > 1 && runs(thread)) running[thread.pthread].push_back(&thread);
    for (const auto& [pthread, of_thread] : running) {
        for (std::size_t i = 0; i + 1 < of_thread.size(); ++i) {
            of_thread[i]->tid = 0;
            of_thread[i]->pthread = base::Address();
        }
    }
}

std::vector<ThreadState> ThreadList::read() {
    const auto& layout = runtime_.layout;
    std::vector<ThreadState> threads;
    std::unordered_set<base::Address> seen;
    const auto head = memory_.read_address(runtime_.address + layout.runtime.interpreters_head);
    for (base::Address at = head.value_or(base::Address());
         !at.is_null() && seen.size() < kMaxInterpreters;) {
        if (!seen.insert(at).second) break;
        const auto id = memory_.read<std::int64_t>(at + layout.interpreter.id);
        const auto next = memory_.read_address(at + layout.interpreter.next);
        if (!id || !next) break;
        add_threads_of(at, *id, threads);
        at = *next;
    }
    if (pid_ <= 0) return threads;
    const Ids ids = task_ids();
    if (layout.thread.native_thread_id == kAbsent) tids_from_pthreads(threads, ids);
    for (ThreadState& thread : threads) {
        const auto outer = ids.outer_of.find(thread.tid);
        thread.tid = outer != ids.outer_of.end() ? outer->second : 0;
    }
    find_runners(threads);
    return threads;
}

}  // namespace memattach::python
