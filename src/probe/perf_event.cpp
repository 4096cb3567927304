#include "memattach/probe/perf_event.h"

#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <ctime>
#include <fstream>
#include <utility>

#include "memattach/base/error.h"

namespace memattach::probe {
namespace {

std::size_t page_bytes() {
    return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

perf_event_attr make_attributes(const PerfOptions& options) {
    perf_event_attr attr{};
    attr.size = sizeof(attr);
    attr.type = PERF_TYPE_SOFTWARE;
    // The task clock counts, and fires on, the time that the thread itself spends on a CPU; what is left of a
    // period when the thread is scheduled out is kept for when it comes back (perf_swevent_cancel_hrtimer in
    // kernel/events/core.c, since Linux 2.6.38).
    attr.config = options.period_ns > 0 ? PERF_COUNT_SW_TASK_CLOCK : PERF_COUNT_SW_DUMMY;
    attr.sample_period = options.period_ns;
    attr.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_READ;
    attr.sample_id_all = 1;
    attr.use_clockid = 1;
    attr.clockid = CLOCK_MONOTONIC;
    attr.task = attr.comm = attr.comm_exec = options.tasks ? 1 : 0;
    attr.context_switch = options.switches ? 1 : 0;
    attr.exclude_kernel = options.exclude_kernel ? 1 : 0;
    attr.exclude_hv = 1;
    // Bytes, not events: a new thread's or an exec's record wakes us as a sample does.
    attr.watermark = 1;
    attr.wakeup_watermark =
        options.wake ? 1 : static_cast<std::uint32_t>(options.ring_pages * page_bytes() / 2);
    if (options.user_stack_bytes > 0) {
        attr.sample_type |= PERF_SAMPLE_REGS_USER | PERF_SAMPLE_STACK_USER;
        attr.sample_regs_user = kPerfRegisterMask;
        attr.sample_stack_user = options.user_stack_bytes;
    }
    return attr;
}

std::optional<int> read_paranoid() {
    std::ifstream file("/proc/sys/kernel/perf_event_paranoid");
    int value = 0;
    if (file >> value) return value;
    return std::nullopt;
}

}  // namespace

PerfEvent::PerfEvent(PerfEvent&& other) noexcept
    : fd_(std::move(other.fd_)),
      page_(std::exchange(other.page_, nullptr)),
      mapped_bytes_(std::exchange(other.mapped_bytes_, 0)),
      format_(other.format_) {}

PerfEvent& PerfEvent::operator=(PerfEvent&& other) noexcept {
    if (this != &other) {
        close();
        fd_ = std::move(other.fd_);
        page_ = std::exchange(other.page_, nullptr);
        mapped_bytes_ = std::exchange(other.mapped_bytes_, 0);
        format_ = other.format_;
    }
    return *this;
}

PerfEvent::~PerfEvent() {
    close();
}

void PerfEvent::close() {
    if (page_ != nullptr) ::munmap(page_, mapped_bytes_);
    page_ = nullptr;
    fd_.reset();
}

int PerfEvent::open(int tid, const PerfOptions& options) {
    close();
    perf_event_attr attr = make_attributes(options);
    fd_.reset(static_cast<int>(::syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC)));
    if (!fd_.is_open()) return errno;
    mapped_bytes_ = (1 + options.ring_pages) * page_bytes();
    void* page = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (page == MAP_FAILED) {
        const int error = errno;
        fd_.reset();
        return error;
    }
    page_ = page;
    format_.user_registers = format_.user_stack = options.user_stack_bytes > 0;
    return 0;
}

std::optional<std::uint64_t> PerfEvent::read_cpu_ns() const {
    std::uint64_t value = 0;
    if (!fd_.is_open() || ::read(fd_.get(), &value, sizeof(value)) != sizeof(value)) return std::nullopt;
    return value;
}

void PerfEvent::set_period(std::uint64_t period_ns) {
    if (fd_.is_open()) ::ioctl(fd_.get(), PERF_EVENT_IOC_PERIOD, &period_ns);
}

std::uint64_t PerfEvent::load_head() const {
    auto* page = static_cast<perf_event_mmap_page*>(page_);
    return std::atomic_ref<__u64>(page->data_head).load(std::memory_order_acquire);
}

std::uint64_t PerfEvent::load_tail() const {
    return static_cast<const perf_event_mmap_page*>(page_)->data_tail;
}

void PerfEvent::store_tail(std::uint64_t tail) {
    auto* page = static_cast<perf_event_mmap_page*>(page_);
    std::atomic_ref<__u64>(page->data_tail).store(tail, std::memory_order_release);
}

std::span<const std::byte> PerfEvent::ring() const {
    const std::size_t page = page_bytes();
    return {static_cast<const std::byte*>(page_) + page, mapped_bytes_ - page};
}

PerfAccess probe_perf(int tid) {
    PerfAccess access;
    PerfEvent event;
    PerfOptions options;
    int error = event.open(tid, options);
    if (error == 0) {
        access.allowed = access.kernel_visible = true;
        return access;
    }
    options.exclude_kernel = true;
    error = event.open(tid, options);
    if (error == 0) {
        access.allowed = true;
        return access;
    }
    const auto paranoid = read_paranoid();
    if (error == EACCES && paranoid && *paranoid > 2) {
        access.why_not =
            fmt::format("kernel.perf_event_paranoid is {}; 2 would do, or CAP_PERFMON", *paranoid);
    } else if (error == ENOSYS || error == EPERM) {
        access.why_not = fmt::format(
            "perf_event_open says \"{}\", as a container's seccomp filter makes it; CAP_PERFMON for the "
            "container "
            "would do",
            base::errno_text(error));
    } else {
        access.why_not = fmt::format("perf_event_open says \"{}\"", base::errno_text(error));
    }
    return access;
}

}  // namespace memattach::probe
