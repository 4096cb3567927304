#pragma once

#include "python/fake_interpreter.h"

namespace memattach::test {

/// A thread whose outermost frame is Thread._bootstrap(self), of a Python 3.`minor`, with self._name ==
/// "worker". The attributes lie where that version keeps them, or (`dict`) in a dict of the instance's own.
class FakeThread {
  public:
    static constexpr base::Address kHeap{
        0x1000};  ///< low, so that fuzzed 16-bit words can be pointers into it
    static constexpr std::uint64_t kHeapBytes = 0x4000;
    static constexpr base::Address kType{0x2000}, kStrType{0x2800}, kDictType{0x2a00}, kSelf{0x3000},
        kDict{0x3400}, kKeys{0x3800}, kValues{0x3c00};

    FakeThread(int minor, bool dict)
        : fake(minor <= 10   ? FrameStyle::heap
               : minor == 11 ? FrameStyle::cframe
               : minor <= 13 ? FrameStyle::shims
                             : FrameStyle::tagged) {
        fake.runtime.version = {3, minor, 0,
                                static_cast<std::uint32_t>(3U << 24U | unsigned(minor) << 16U | 0xF0U)};
        fake.runtime.layout.frame.localsplus = 80;
        fake.memory.fake.map_zeros(kHeap, kHeapBytes);
        put(kType + 24, fake.add_bytes("Thread"));
        put(kStrType + 24, fake.add_bytes("str"));
        put(kDictType + 24, fake.add_bytes("dict"));
        const base::Address name = fake.add_text("worker");
        put(name + 8, kStrType);
        put(kSelf + 8, kType);
        put_keys(minor, dict, name);
        put_instance(minor, dict, name);

        const base::Address code =
            fake.add_code(fake.add_text("_bootstrap"), fake.add_text("/usr/lib/python3/threading.py"), 10);
        fake.put_frame(0, code, 2, base::Address(),
                       {.running = fake.style == FrameStyle::heap, .entry = true});
        if (fake.style == FrameStyle::tagged) fake.put_frame(0, code, 2, base::Address());
        put(FakeInterpreter::frame_at(0) + 80, kSelf);
        fake.put_frame(1, fake.add_code("run"), 2, FakeInterpreter::frame_at(0));
        fake.set_current(FakeInterpreter::frame_at(1));
    }

    FakeInterpreter fake;

  private:
    void put(base::Address at, base::Address value) { fake.memory.fake.write(at, value.value()); }

    void put_keys(int minor, bool dict, base::Address name) {
        auto& memory = fake.memory.fake;
        const base::Address entries = kKeys + (minor <= 10 ? 48 : 40);
        if (minor <= 10) {
            memory.write(kKeys + 8, std::int64_t{8});   // dk_size
            memory.write(kKeys + 32, std::int64_t{2});  // dk_nentries
        } else {
            memory.write(kKeys + 9, std::int8_t{3});              // dk_log2_index_bytes
            memory.write(kKeys + 10, std::int8_t(dict ? 1 : 2));  // dk_kind: of strings, shared
            memory.write(kKeys + 24, std::int64_t{2});
        }
        const std::uint64_t size = minor <= 10 ? 24 : 16;
        const std::uint64_t key = minor <= 10 ? 8 : 0;
        put(entries + key, fake.add_text("_target"));
        put(entries + (size + key), fake.add_text("_name"));
        if (dict) put(entries + (size + key + 8), name);
    }

    void put_instance(int minor, bool dict, base::Address name) {
        put(kDict + 8, kDictType);
        put(kDict + 32, kKeys);
        if (minor <= 10) {
            fake.memory.fake.write(kType + 288, std::int64_t{32});
            put(kSelf + 32, kDict);
            if (!dict) put(kDict + 40, kValues);
            put(kValues + 8, name);
            return;
        }
        put(kType + (minor <= 11 ? 872 : minor <= 14 ? 880 : 888), kKeys);
        if (dict) {
            put(base::Address(kSelf.value() - 24), kDict);
        } else if (minor == 11) {
            put(base::Address(kSelf.value() - 32), kValues);
            put(kValues + 8, name);
        } else if (minor == 12) {
            put(base::Address(kSelf.value() - 24), base::Address(kValues.value() - 1));
            put(kValues + 8, name);
        } else {
            fake.memory.fake.write(kType + 32, std::int64_t{64});
            put(kSelf + (64 + 8 + 8), name);
        }
    }
};

}  // namespace memattach::test
