#include "processor_speed.h"

#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

namespace memattach::probe {
namespace {

constexpr std::size_t kCodes = 61, kCells = 256;
constexpr int kSteps = 1500, kRuns = 4;

struct Machine {
    std::array<std::uint8_t, kCodes> code{};
    std::array<std::uint32_t, kCells> cells{};

    Machine() {
        std::uint32_t x = 12345;
        for (std::uint8_t& op : code) op = static_cast<std::uint8_t>((x = x * 1664525 + 1013904223) >> 29);
    }

    /// Not to be computed by the compiler, nor left out.
    [[gnu::noinline]] std::uint32_t run() {
        std::uint32_t a = 1;
        std::uint32_t b = 2;
        std::size_t at = 0;
        for (int i = 0; i < kSteps; ++i) {
            step(code[at], a, b);
            at = at + 1 == kCodes ? 0 : at + 1;
        }
        return a + b;
    }

  private:
    void step(std::uint8_t op, std::uint32_t& a, std::uint32_t& b) {
        switch (op) {
            case 0:
                a += cells[b % kCells];
                return;
            case 1:
                cells[a % kCells] = b;
                return;
            case 2:
                b ^= a >> 3;
                return;
            case 3:
                std::swap(a, b);
                return;
            case 4:
                a = a * 5 + 1;
                return;
            case 5:
                b += cells[(a >> 5) % kCells];
                return;
            case 6:
                cells[b % kCells] += 1;
                return;
            default:
                a -= b;
                return;
        }
    }
};

}  // namespace

double time_fixed_work() {
    static Machine machine;
    std::uint64_t least = ~std::uint64_t{0};
    for (int i = 0; i < kRuns; ++i) {
        const std::uint64_t start = __rdtsc();
        const std::uint32_t result = machine.run();
        asm volatile("" : : "r"(result));  // wanted
        least = std::min<std::uint64_t>(least, __rdtsc() - start);
    }
    return static_cast<double>(least);
}

}  // namespace memattach::probe
