#include <cstdint>
#include <cstdlib>

#include "memattach/python/thread_name.h"
#include "python/fake_thread.h"

/// Input: a version, then six-byte writes into the thread object, its type, dict, keys and values: where (16
/// bits), how the value is made, the value (16 bits, which can be a pointer to any of those).
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace memattach;
    using test::FakeThread;
    if (size < 1 || size > 1024) return 0;
    FakeThread thread(8 + data[0] % 8, (data[0] & 8) != 0);
    for (std::size_t at = 1; at + 6 <= size; at += 6) {
        const std::uint64_t where = std::uint64_t{data[at]} | std::uint64_t{data[at + 1]} << 8U;
        const std::uint64_t number = std::uint64_t{data[at + 3]} | std::uint64_t{data[at + 4]} << 8U;
        const unsigned shift = data[at + 2] % 4 == 0 ? data[at + 5] % 64U : 0;
        thread.fake.memory.fake.write(FakeThread::kHeap + where % (FakeThread::kHeapBytes - 8),
                                      number << shift);
    }
    const auto name =
        python::read_thread_name(thread.fake.memory, thread.fake.runtime, test::FakeInterpreter::kThread);
    if (name && name->size() > 8192) std::abort();
    return 0;
}
