#include "shadow_space.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "memattach/base/clock.h"

namespace memattach::probe {
namespace {

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1  // Linux 5.11: what processes without privileges may have
#endif

constexpr rlim_t kMostCpuSeconds = 20;
constexpr std::uint64_t kArenaBytes = 1 << 30;
constexpr std::uint64_t kReach = 0x70000000;  // a little less than a jump can do

int protection(const process::Mapping& mapping) {
    return (mapping.readable ? PROT_READ : 0) | (mapping.writable ? PROT_WRITE : 0) |
           (mapping.executable ? PROT_EXEC : 0);
}

/// The kernel's own pages can't be read or mean nothing in a copy.
bool belongs_to_kernel(const process::Mapping& mapping) {
    return mapping.path.rfind("[v", 0) == 0 || mapping.start.value() >> 47 != 0;
}

/// A page-aligned gap of `size_bytes` within reach of `site`.
std::uint64_t find_gap(std::span<const process::Mapping> mappings, std::uint64_t site,
                       std::uint64_t size_bytes, std::span<const std::uint64_t> taken) {
    constexpr std::uint64_t kGuard = 1 << 20;  // the program's own mappings grow towards each other
    const auto is_free = [&](std::uint64_t at) {
        const auto overlaps = [&](std::uint64_t start, std::uint64_t end) {
            return at < end + kGuard && start < at + size_bytes + kGuard;
        };
        for (const process::Mapping& m : mappings) {
            if (overlaps(m.start.value(), m.end.value())) return false;
        }
        return std::none_of(taken.begin(), taken.end(),
                            [&](std::uint64_t start) { return overlaps(start, start + size_bytes); });
    };
    constexpr std::uint64_t kStep = 4 << 20;
    const std::uint64_t aligned = site & ~(kStep - 1);
    for (std::uint64_t away = kStep; away < kReach; away += kStep) {
        if (aligned > away && aligned - away > kStep && is_free(aligned - away)) return aligned - away;
        if (aligned + away < (1ULL << 47) - kStep && is_free(aligned + away)) return aligned + away;
    }
    return 0;
}

}  // namespace

/// One with room for another stub; null where there is none within reach of the site.
ShadowSpace::StubArea* ShadowSpace::area_for(const Options& options, std::uint64_t site,
                                             std::vector<std::uint64_t>& taken) {
    const auto known = std::find_if(areas_.begin(), areas_.end(), [&](const StubArea& a) {
        return std::max(a.at, site) - std::min(a.at, site) < kReach &&
               a.used + sizeof(CounterStub::code) < kPage - kTailBytes;
    });
    if (known != areas_.end()) return &*known;
    const std::uint64_t at = find_gap(options.mappings, site, kStubBytes, taken);
    if (at == 0) return nullptr;
    taken.push_back(at);
    StubArea& area = areas_.emplace_back();
    area.at = at;
    lay_tail(area);
    return &area;
}

/// Gives every site a counter and its stubs. A group that has a site without them can't be counted.
void ShadowSpace::layout_stubs(const Options& options) {
    std::vector<std::uint64_t> taken;
    for (std::size_t i = 0; i < options.sites.size(); ++i) {
        const PlannedSite& site = options.sites[i];
        const std::size_t group = group_of(site.site.group);
        Patch patch;
        patch.address = site.address;
        for (const Stubs kind : {Stubs::marking, Stubs::counting}) {
            auto& bytes = patch.bytes[static_cast<std::size_t>(kind)];
            if (kind == Stubs::marking && site.site.is_release()) {
                std::copy_n(site.code.begin(), bytes.size(), bytes.begin());
                continue;
            }
            StubArea* const area = area_for(options, site.address, taken);
            const auto stub =
                area != nullptr ? make_counter(site, i, group, area->at + area->used, area->at + kPage, kind)
                                : std::nullopt;
            if (!stub || i >= ShadowCounters::kSites) {
                counts_[group] = false;
                break;
            }
            std::memcpy(area->code.data() + area->used, stub->code.data(), stub->size_bytes);
            stops_[area->at + area->used + stub->stop_offset] = i;
            area->used += (stub->size_bytes + 15) & ~std::size_t{15};
            bytes = stub->jump;
            if (kind == Stubs::counting) patches_.push_back(patch);
        }
    }
    std::sort(taken.begin(), taken.end());
    map_room(options.mappings, taken);
}

void ShadowSpace::lay_tail(StubArea& area) {
    area.code.fill(std::byte{0xCC});
    const EntryStub entry = make_entry(area.at + kPage - kTailBytes, area.at + kPage);
    std::memcpy(area.code.data() + kPage - kTailBytes, entry.code.data(), entry.size_bytes);
    std::byte* touch = area.code.data() + kPage - kCallsBytes - kTouchesBytes;
    for (std::uint32_t k = 0; k < kTouches; ++k, touch += 7) {
        const std::uint32_t away = k * kPage;
        std::memcpy(touch, "\x48\x8B\x87", 3);
        std::memcpy(touch + 3, &away, sizeof away);
    }
    std::memcpy(area.code.data() + kPage - kCallsBytes - kTouchesBytes - kTouchAllBytes, kTouchAll.data(),
                kTouchAll.size());
    for (std::size_t k = 0; k < kCalls; ++k)
        std::memcpy(area.code.data() + kPage - kCallsBytes + k * kCall.size(), kCall.data(), kCall.size());
}

/// Where the target's heap and mappings will have grown to before this is made anew: behind each writable
/// mapping and in small gaps, as far as nothing else is there.
void ShadowSpace::map_room(std::span<const process::Mapping> mappings, std::span<const std::uint64_t> taken) {
    constexpr std::uint64_t kRoom = 256 << 20;
    for (std::size_t i = 0; i < mappings.size(); ++i) {
        const std::uint64_t start = mappings[i].end.value();
        const std::uint64_t next = i + 1 < mappings.size() ? mappings[i + 1].start.value() : start;
        if (next <= start || start >> 47 != 0) continue;
        const auto add = [&](std::uint64_t from, std::uint64_t to) {
            for (const std::uint64_t at : taken) {
                if (at < from || at >= to) continue;
                room_.push_back({from, at});
                from = at + kStubBytes;
            }
            if (from < to) room_.push_back({from, to});
        };
        if (next - start <= 2 * kRoom) {
            add(start, next);
        } else {
            add(start, start + kRoom);
            add(next - kRoom, next);
        }
    }
}

ShadowSpace::ShadowSpace(const Options& options) : counters_(options.counters) {
    for (const process::Mapping& mapping : options.mappings) {
        if (mapping.path == "[vdso]") vdso_.emplace(options.target, mapping);
    }
    layout_stubs(options);
    if (!counts_[0] && !counts_[1]) return;
    timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
    if (!timer_.is_open()) return;
    void* page = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return;
    auto* ready = static_cast<std::uint32_t*>(page);
    const pid_t keeper = getpid();
    // The descriptors are shared, so that what the child opens is open here: a userfaultfd belongs to the
    // memory of the process that made it.
    pid_ = static_cast<pid_t>(syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    if (pid_ == 0) become_shadow(options, keeper, ready);
    const std::uint64_t start = base::monotonic_ns();
    constexpr std::uint64_t kPatienceNs = 2'000'000'000;
    while (pid_ > 0 && __atomic_load_n(ready + 4, __ATOMIC_ACQUIRE) == 0) {
        if (::waitpid(pid_, nullptr, WNOHANG | __WALL) == pid_) pid_ = -1;
        if (base::monotonic_ns() - start > kPatienceNs) break;
        const timespec pause{0, 100'000};
        ::nanosleep(&pause, nullptr);
    }
    const bool started = pid_ > 0 && __atomic_load_n(ready + 4, __ATOMIC_ACQUIRE) != 0;
    if (started) faults_.reset(static_cast<int>(ready[0]));
    if (started) {
        arena_ = __atomic_load_n(reinterpret_cast<std::uint64_t*>(ready) + 1, __ATOMIC_RELAXED);
        kernel_.set_arena(arena_, arena_ + kArenaBytes);
    }
    ::munmap(page, kPage);
    if (!started) return;
    sched_param realtime{};
    realtime.sched_priority = 1;
    sched_setscheduler(pid_, SCHED_RR, &realtime);  // where it may be
    if (ptrace(PTRACE_SEIZE, pid_, nullptr, PTRACE_O_EXITKILL) != 0) return;
    if (ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) != 0 || !wait_stopped()) return;
    if (write_code()) measure_switches(options.data_fd);
}

/// In the child. Nothing is allocated; whatever goes wrong ends it.
void ShadowSpace::become_shadow(const Options& options, pid_t keeper, std::uint32_t* ready) const {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != keeper) _exit(0);  // it died before it could be told to
    prctl(PR_SET_NAME, "memattach-shadow");
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    const rlimit some_seconds{kMostCpuSeconds, kMostCpuSeconds};  // it is made anew long before
    setrlimit(RLIMIT_CPU, &some_seconds);
    int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    if (fd < 0) fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    uffdio_api api{};
    api.api = UFFD_API;
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0) _exit(1);
    for (const std::span<std::byte> range : options.unmapped) ::munmap(range.data(), range.size());
    const auto watch = [&](std::uint64_t from, std::uint64_t size_bytes) {
        uffdio_register area{};
        area.range = {from, size_bytes};
        area.mode = UFFDIO_REGISTER_MODE_MISSING;
        if (ioctl(fd, UFFDIO_REGISTER, &area) != 0) _exit(3);
    };
    const auto map_data = [&](std::uint64_t from, std::uint64_t size_bytes, int access) {
        auto* const at = reinterpret_cast<void*>(from);
        if (::mmap(at, size_bytes, access, MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, options.data_fd,
                   static_cast<off_t>(from)) != at)
            return false;
        watch(from, size_bytes);
        return true;
    };
    for (const process::Mapping& mapping : options.mappings) {
        if (belongs_to_kernel(mapping)) continue;
        const std::uint64_t start = mapping.start.value();
        if (holds_data(mapping)) {
            const int access = mapping.writable ? protection(mapping) : PROT_READ | PROT_WRITE;
            if (!map_data(start, mapping.size_bytes(), access)) _exit(2);
            continue;
        }
        if (!mapping.readable) continue;
        auto* const at = reinterpret_cast<void*>(start);
        if (::mmap(at, mapping.size_bytes(), protection(mapping),
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != at)
            _exit(2);
        watch(start, mapping.size_bytes());
    }
    if (vdso_) {
        auto* const at = reinterpret_cast<void*>(vdso_->start());
        if (::mmap(at, vdso_->size_bytes(), PROT_READ | PROT_EXEC,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
            _exit(8);
    }
    for (const auto& [from, to] : room_)  // but where something of our own is
        static_cast<void>(map_data(from, to - from, PROT_READ | PROT_WRITE));
    for (const StubArea& area : areas_) {
        auto* const at = reinterpret_cast<void*>(area.at);
        if (::mmap(at, kPage, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                   0) != at)
            _exit(4);
        // The same pages once more: an old size of 0 duplicates a shared mapping (mremap(2)).
        auto* const counters = reinterpret_cast<void*>(area.at + kPage);
        if (::mremap(options.counters, 0, kCounterBytes, MREMAP_MAYMOVE | MREMAP_FIXED, counters) != counters)
            _exit(5);
    }
    // Where there is room for it; then it is mapped once more, as data.
    void* const arena = ::mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const auto arena_start = reinterpret_cast<std::uint64_t>(arena);
    if (arena == MAP_FAILED || ::munmap(arena, kArenaBytes) != 0 ||
        !map_data(arena_start, kArenaBytes, PROT_READ | PROT_WRITE))
        _exit(7);
    reinterpret_cast<std::uint64_t*>(ready)[1] = arena_start;
    ready[0] = static_cast<std::uint32_t>(fd);
    auto* const flag = ready + 4;
    // Not the strict mode: that takes the time stamp counter away (seccomp_set_mode_strict() in
    // kernel/seccomp.c).
    sock_filter no_call = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    const sock_fprog filter{1, &no_call};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(6);
    // Nor what it is to cost where a filter takes the processor's speculation away (until Linux 5.16).
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) != 0 &&
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        _exit(6);
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
    for (;;) __builtin_ia32_pause();
}

ShadowSpace::~ShadowSpace() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, __WALL);
}

bool ShadowSpace::write_code() {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/mem", pid_);
    memory_.reset(::open(path, O_RDWR | O_CLOEXEC));
    if (!memory_.is_open() || !write_vdso()) return false;
    return std::all_of(areas_.begin(), areas_.end(), [&](const StubArea& area) {
        return ::pwrite(memory_.get(), area.code.data(), area.code.size(), static_cast<off_t>(area.at)) ==
               static_cast<ssize_t>(area.code.size());
    });
}

bool ShadowSpace::write_vdso() {
    return !vdso_ ||
           ::pwrite(memory_.get(), vdso_->image().data(), vdso_->image().size(),
                    static_cast<off_t>(vdso_->start())) == static_cast<ssize_t>(vdso_->image().size());
}

void ShadowSpace::begin_state(std::uint64_t time_ns) {
    if (!vdso_) return;
    vdso_->read_clocks(static_cast<std::int64_t>(base::monotonic_ns() - time_ns));
    const std::span<const std::byte> times = vdso_->times();
    static_cast<void>(
        ::pwrite(memory_.get(), times.data(), times.size(), static_cast<off_t>(vdso_->times_start())) < 0);
}

/// False where there is nothing to be patched.
bool ShadowSpace::patch(std::uint64_t page, std::span<std::byte> content) const {
    bool any = false;
    for (const Patch& patch : patches_) {
        const std::span<const std::byte> bytes = present(patch);
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            const std::uint64_t offset = patch.address + i - page;
            if (offset >= kPage) continue;
            content[offset] = bytes[i];
            any = true;
        }
    }
    return any;
}

bool ShadowSpace::use(Stubs stubs) {
    if (std::exchange(stubs_, stubs) == stubs) return true;
    for (const Patch& patch : patches_) {
        const std::span<const std::byte> bytes = present(patch);
        // A page that isn't there yet comes with what is used then.
        const std::uint64_t page = patch.address & ~(kPage - 1);
        const std::uint64_t next = page + kPage;
        const std::size_t here = std::min<std::uint64_t>(bytes.size(), next - patch.address);
        const auto write = [&](std::span<const std::byte> part, std::uint64_t address) {
            return part.empty() || filled_.count(address & ~(kPage - 1)) == 0 ||
                   ::pwrite(memory_.get(), part.data(), part.size(), static_cast<off_t>(address)) ==
                       static_cast<ssize_t>(part.size());
        };
        if (!write(bytes.first(here), patch.address) || !write(bytes.subspan(here), next)) return false;
    }
    return true;
}

bool ShadowSpace::fill(std::uint64_t page, std::span<const std::byte> content) {
    alignas(4096) std::array<std::byte, kPage> copy;
    std::memcpy(copy.data(), content.data(), kPage);
    if (patch(page, copy)) filled_.insert(page);
    uffdio_copy order{};
    order.dst = page;
    order.src = reinterpret_cast<std::uint64_t>(copy.data());
    order.len = kPage;
    return ioctl(faults_.get(), UFFDIO_COPY, &order) == 0 || (errno == EEXIST && wake(page));
}

bool ShadowSpace::wake(std::uint64_t page) {
    uffdio_range range{page, kPage};
    return ioctl(faults_.get(), UFFDIO_WAKE, &range) == 0;
}

bool ShadowSpace::set_state(user_regs_struct registers, std::span<const std::byte> extended_state) {
    iovec area{const_cast<std::byte*>(extended_state.data()), extended_state.size()};
    kernel_.restart();
    begin_marks(registers.rip);
    registers.rip = areas_.front().at + kPage - kTailBytes;
    return set_registers(registers) && ptrace(PTRACE_SETREGSET, pid_, NT_X86_XSTATE, &area) == 0;
}

void ShadowSpace::begin_marks(std::uint64_t entry) {
    counters_->entry = entry;
    counters_->start_ticks = 0;
    counters_->marked = 0;
    counters_->until_mark = counters_->mark_every;
}

bool ShadowSpace::set_registers(user_regs_struct registers) {
    registers.orig_rax = ~0ULL;  // not in a system call: nothing to restart
    registers_.reset();
    return ptrace(PTRACE_SETREGS, pid_, nullptr, &registers) == 0;
}

std::optional<user_regs_struct> ShadowSpace::registers() {
    if (registers_) return registers_;
    user_regs_struct out{};
    if (ptrace(PTRACE_GETREGS, pid_, nullptr, &out) != 0) return std::nullopt;
    return registers_ = out;
}

std::optional<std::size_t> ShadowSpace::stopped_at(std::uint64_t pc) const {
    const auto found = stops_.find(pc);
    if (found == stops_.end()) return std::nullopt;
    return found->second;
}

std::optional<std::byte> ShadowSpace::write_byte(std::uint64_t address, std::byte value) {
    std::byte before{};
    const auto at = static_cast<off_t>(address);
    if (::pread(memory_.get(), &before, 1, at) != 1 || ::pwrite(memory_.get(), &value, 1, at) != 1)
        return std::nullopt;
    return before;
}

}  // namespace memattach::probe
