#include "processor_speed.h"

#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace memattach::probe {
namespace {

constexpr int kRounds = 16, kRuns = 3;
/// Of two Python programs, by linear regression: 1.0 to 1.3.
constexpr double kSlope = 1.1;

std::array<std::uint32_t, 4096> cells;

/// 2,000 instructions in a row, half of them between a register and one of the cells.
[[gnu::noinline]] void work() {
    std::uint32_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
    for (int i = 0; i < kRounds; ++i) {
        asm volatile(
            R"(
            .set memattach_cell, 12345
            .macro memattach_next_cell
            .set memattach_cell, (memattach_cell * 1103515245 + 12345) & 0x3ffc
            .endm
            .rept 250
            memattach_next_cell
            addl memattach_cell(%[cells]), %[a]
            addl $0x1a2b3c, %[b]
            memattach_next_cell
            movl %[c], memattach_cell(%[cells])
            xorl $0x3c2b1a, %[d]
            memattach_next_cell
            addl memattach_cell(%[cells]), %[e]
            addl $0x2b3c4d, %[f]
            memattach_next_cell
            movl %[a], memattach_cell(%[cells])
            xorl $0x4d3c2b, %[c]
            .endr
            .purgem memattach_next_cell
            )"
            : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d), [e] "+r"(e), [f] "+r"(f)
            : [cells] "r"(cells.data())
            : "memory", "cc");
    }
}

}  // namespace

double log_slowness() {
    std::uint64_t least = ~std::uint64_t{0};
    for (int i = 0; i < kRuns; ++i) {
        const std::uint64_t start = __rdtsc();
        work();
        least = std::min<std::uint64_t>(least, __rdtsc() - start);
    }
    return kSlope * std::log(static_cast<double>(least));
}

}  // namespace memattach::probe
