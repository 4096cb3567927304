#include <array>
#include <cstdint>
#include <cstdlib>

#include "memattach/python/reader.h"
#include "python/fake_interpreter.h"

namespace {

using namespace memattach;
using test::FakeInterpreter;
using test::FrameStyle;

/// Input is a list of six-byte writes: where (16 bits: frames, thread state, code objects, a string, a list
/// of threads …) and what (a small number, or the address of one of those), some of them done before the
/// first walk, the others while walks are under way.
struct Patch {
    std::uint16_t where;
    std::uint8_t kind;
    std::uint8_t shift;
    std::uint16_t value;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 1 || size > 2048) return 0;
    FakeInterpreter fake(static_cast<FrameStyle>(data[0] % 4));
    std::array<base::Address, 4> codes;
    for (auto& code : codes) code = fake.add_code("f");
    for (std::uint64_t i = 0; i < 6; ++i) {
        fake.put_frame(i, codes[i % 4], 2, i == 0 ? base::Address() : FakeInterpreter::frame_at(i - 1),
                       {.running = i == 5 || fake.style == FrameStyle::heap, .entry = i == 0});
    }
    fake.set_current(FakeInterpreter::frame_at(5));

    const auto apply = [&](const Patch& patch) {
        const std::array<std::pair<base::Address, std::uint64_t>, 8> places = {{
            {FakeInterpreter::kFrames, 8 * FakeInterpreter::kFrameBytes - 8},
            {FakeInterpreter::kThread, 120},
            {FakeInterpreter::kInterpreter, 56},
            {FakeInterpreter::kRuntime, 56},
            {FakeInterpreter::kCFrame, 16},
            {FakeInterpreter::kGil, 16},
            {codes[0], 152},
            {codes[1], 152},
        }};
        const auto& [start, bytes] = places[patch.where % places.size()];
        const base::Address at = start + patch.where / places.size() % (bytes + 1);
        std::uint64_t value = 0;
        switch (patch.kind % 5) {
            case 0:
                value = static_cast<std::uint64_t>(std::int64_t{static_cast<std::int16_t>(patch.value)});
                break;
            case 1:
                value = std::uint64_t{patch.value} << (patch.shift % 64U);
                break;
            case 2:
                value = FakeInterpreter::frame_at(patch.value % 8U).value();
                break;
            case 3:
                value = codes[patch.value % codes.size()].value() + patch.shift;
                break;
            case 4:
                value = places[patch.value % places.size()].first.value() + patch.shift;
                break;
        }
        fake.memory.fake.write(at, value);
    };
    std::vector<Patch> patches;
    for (std::size_t at = 1; at + 6 <= size; at += 6) {
        patches.push_back({static_cast<std::uint16_t>(data[at] | data[at + 1] << 8), data[at + 2],
                           data[at + 3], static_cast<std::uint16_t>(data[at + 4] | data[at + 5] << 8)});
    }
    std::size_t next = 0;
    for (; next < patches.size() / 2; ++next) apply(patches[next]);

    python::StackReader reader(fake.memory, fake.runtime, 0);
    trace::FunctionTable table;
    python::CodeCache cache(fake.memory, fake.runtime, table,
                            {.trust_changed_ns = 0, .trust_unchanged_ns = 0});
    python::RawStack raw;
    trace::Stack stack;
    trace::LossCounts losses;
    fake.memory.on_read = [&](std::size_t reads, base::Address) {
        if (reads % 3 == 0 && next < patches.size()) apply(patches[next++]);
    };
    for (int i = 0; i < 4; ++i) {
        if (reader.threads().size() > 2) std::abort();
        (void)reader.walk(FakeInterpreter::kThread, raw, i == 3);
        if (raw.frames.size() > trace::kMaxStackDepth || raw.unchanged_frames > raw.frames.size())
            std::abort();
        cache.resolve(raw, stack, losses);
        if (stack.size() > raw.frames.size() + 2) std::abort();
        if (fake.memory.reads > 200'000) std::abort();
    }
    return 0;
}
