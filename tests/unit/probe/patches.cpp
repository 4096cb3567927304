#include "memattach/probe/patches.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <memory>

#include "memattach/base/unique_fd.h"

using namespace memattach;

namespace {

std::uint64_t address_of(const void* place) {
    return reinterpret_cast<std::uint64_t>(place);
}

}  // namespace

TEST_CASE("all patches are undone, and what the program has changed since is left alone") {
    const base::UniqueFd memory(::open("/proc/self/mem", O_RDWR | O_CLOEXEC));
    REQUIRE(memory.is_open());
    const auto table = std::make_unique<probe::PatchTable>();
    std::array<std::uint8_t, 8> bytes = {1, 2, 3, 4, 5, 6, 7, 8};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const auto patch = probe::apply_patch(*table, memory.get(), address_of(&bytes[i]), bytes[i], 0xCC, 1);
        REQUIRE(patch);
        table->entries[*patch].hits.store(static_cast<std::uint32_t>(i * 7 % 5));
    }
    bytes[3] = 99;
    CHECK(probe::undo_all_patches(*table, memory.get(), true) == 7);
    CHECK(bytes == std::array<std::uint8_t, 8>{1, 2, 3, 99, 5, 6, 7, 8});
    CHECK(probe::undo_all_patches(*table, memory.get(), true) == 0);
}

TEST_CASE("a thread behind an int3 is told from one behind the instruction that it displaced") {
    const base::UniqueFd memory(::open("/proc/self/mem", O_RDWR | O_CLOEXEC));
    const auto table = std::make_unique<probe::PatchTable>();
    std::uint8_t push = 0x53;
    const auto patch = probe::apply_patch(*table, memory.get(), address_of(&push), push, 0xCC, 1);
    REQUIRE(patch);
    const std::uint64_t behind = address_of(&push) + 1;
    constexpr std::uint64_t kStack = 0x7ffc00001008;
    CHECK(probe::stands_behind_int3(*table, behind,
                                    kStack));  // never hit before: it can't have been carried out
    table->entries[*patch].stack_phase.store(kStack % 16 + 1);
    CHECK(probe::stands_behind_int3(*table, behind, kStack));
    CHECK(probe::stands_behind_int3(*table, behind, kStack - 160));
    CHECK_FALSE(probe::stands_behind_int3(*table, behind, kStack - 8));  // pushed
    CHECK_FALSE(probe::stands_behind_int3(*table, behind + 1, kStack));
    probe::undo_all_patches(*table, memory.get(), true);
    CHECK_FALSE(probe::stands_behind_int3(*table, behind, kStack));
}
