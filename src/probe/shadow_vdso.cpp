#include "shadow_vdso.h"

#include <array>
#include <cstring>
#include <ctime>

#include "memattach/elf/memory_image.h"

namespace memattach::probe {
namespace {

/// int clock_gettime(edi: clock, rsi: timespec*)
constexpr std::array<unsigned char, 32> kCode = {
    0x48, 0x8D, 0x0D, 0,    0,    0, 0,  // lea rcx, [rip + …]: the times
    0x83, 0xE7, 0x0F,                    // and edi, 15
    0xC1, 0xE7, 0x04,                    // shl edi, 4
    0x48, 0x8B, 0x04, 0x39,              // mov rax, [rcx + rdi]
    0x48, 0x89, 0x06,                    // mov [rsi], rax
    0x48, 0x8B, 0x44, 0x39, 0x08,        // mov rax, [rcx + rdi + 8]
    0x48, 0x89, 0x46, 0x08,              // mov [rsi + 8], rax
    0x31, 0xC0,                          // xor eax, eax
    0xC3,                                // ret
};
constexpr std::size_t kDistanceAt = 3;  ///< of the first instruction's distance, which counts from 7

}  // namespace

ShadowVdso::ShadowVdso(const process::Memory& target, const process::Mapping& mapping)
    : start_(mapping.start.value()),
      image_(mapping.size_bytes(), std::byte{0xCC}),
      times_offset_(image_.size()) {
    const auto elf = elf::MemoryImage::read(target, mapping.start);
    const auto function = elf ? elf->find_symbol("__vdso_clock_gettime") : std::nullopt;
    constexpr std::size_t kTimesBytes = kClocks * 2 * sizeof(std::uint64_t);
    if (!function || image_.size() < kTimesBytes + kCode.size()) return;
    const std::size_t at = function->value() - start_;
    const std::size_t times = image_.size() - kTimesBytes;
    if (at > times - kCode.size()) return;
    std::memcpy(image_.data() + at, kCode.data(), kCode.size());
    const auto distance = static_cast<std::int32_t>(times - (at + kDistanceAt + 4));
    std::memcpy(image_.data() + at + kDistanceAt, &distance, sizeof distance);
    times_offset_ = times;
    for (std::size_t clock = 0; clock < kClocks; ++clock) read_clock(clock, 0);
}

void ShadowVdso::read_clock(std::size_t clock, std::int64_t ago_ns) {
    timespec now{};
    ::clock_gettime(static_cast<clockid_t>(clock), &now);
    constexpr std::int64_t kSecond = 1'000'000'000;
    const std::int64_t ns = now.tv_sec * kSecond + now.tv_nsec - ago_ns;
    const std::array<std::uint64_t, 2> words = {static_cast<std::uint64_t>(ns / kSecond),
                                                static_cast<std::uint64_t>(ns % kSecond)};
    std::memcpy(image_.data() + times_offset_ + clock * sizeof words, words.data(), sizeof words);
}

void ShadowVdso::read_clocks(std::int64_t ago_ns) {
    if (times_offset_ == image_.size()) return;
    for (const clockid_t clock : {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
                                  CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME})
        read_clock(static_cast<std::size_t>(clock), ago_ns);
}

}  // namespace memattach::probe
