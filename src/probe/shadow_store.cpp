#include "shadow_store.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

namespace memattach::probe {

namespace {
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U  // Linux 6.3
#endif
constexpr std::uint64_t kAddresses = 1ULL << 47;
}  // namespace

ShadowStore::ShadowStore() {
    base::UniqueFd file(::memfd_create("memattach-shadow", MFD_CLOEXEC | MFD_NOEXEC_SEAL));
    if (!file.is_open()) file.reset(::memfd_create("memattach-shadow", MFD_CLOEXEC));
    if (!file.is_open() || ::ftruncate(file.get(), static_cast<off_t>(kAddresses)) != 0) return;
    void* room = ::mmap(nullptr, kMostWindows * kWindow, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return;
    room_ = static_cast<std::byte*>(room);
    // The shadow has these pages at their own addresses.
    ::madvise(room_, kMostWindows * kWindow, MADV_DONTFORK);
    file_ = std::move(file);
}

ShadowStore::~ShadowStore() {
    if (room_ != nullptr) ::munmap(room_, kMostWindows * kWindow);
}

std::byte* ShadowStore::at(std::uint64_t page) {
    const std::uint64_t start = page & ~(kWindow - 1);
    auto window = windows_.find(start);
    if (window == windows_.end()) {
        if (windows_.size() == kMostWindows || start >= kAddresses) return nullptr;
        std::byte* place = room_ + windows_.size() * kWindow;
        if (::mmap(place, kWindow, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_.get(),
                   static_cast<off_t>(start)) != place)
            return nullptr;
        ::madvise(place, kWindow, MADV_DONTFORK);
        // A huge page would bring neighbours that nobody has read.
        ::madvise(place, kWindow, MADV_NOHUGEPAGE);
        window = windows_.emplace(start, place).first;
    }
    return window->second + (page - start);
}

void ShadowStore::drop(std::uint64_t page) {
    ::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page),
                static_cast<off_t>(kPage));
}

void ShadowStore::clear() {
    if (windows_.empty()) return;
    ::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(kAddresses));
    ::mmap(room_, windows_.size() * kWindow, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    ::madvise(room_, windows_.size() * kWindow, MADV_DONTFORK);
    windows_.clear();
}

}  // namespace memattach::probe
