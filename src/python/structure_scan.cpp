#include "structure_scan.h"

#include <algorithm>

#include "memattach/base/bytes.h"
#include "memattach/python/sanity.h"

namespace memattach::python {
namespace {

constexpr std::size_t kMaxScanBytes = 8 << 20;      ///< of one mapping
constexpr std::size_t kMaxRemoteReads = 1'000'000;  ///< some seconds' worth
constexpr std::size_t kMaxCandidates = 16;          ///< a real program has one or two

class Scan {
  public:
    Scan(const process::Memory& memory, const Module& module, const std::vector<process::Mapping>& maps,
         const Layout& layout)
        : memory_(memory), module_(module), maps_(maps), layout_(layout) {}

    std::optional<base::Address> run() {
        for (const process::Mapping& mapping : module_.data) {
            std::vector<std::byte> bytes(std::min<std::uint64_t>(mapping.size_bytes(), kMaxScanBytes));
            bytes.resize(memory_.read_up_to(mapping.start, bytes));
            for (std::uint64_t at = 0; reads_ < kMaxRemoteReads; at += 8) {
                const auto head = base::read_at<std::uint64_t>(bytes, at);
                const auto main = base::read_at<std::uint64_t>(bytes, at + 8);
                if (!head || !main) break;
                if (!is_interpreter(base::Address(*main)) || !is_interpreter(base::Address(*head))) continue;
                if (++candidates_ > kMaxCandidates) return std::nullopt;
                const base::Address runtime = mapping.start + at - layout_.runtime.interpreters_head;
                std::string why;
                if (check_layout(memory_, runtime, layout_, why) == Sanity::confirmed) return runtime;
            }
        }
        return std::nullopt;
    }

  private:
    /// Its first thread leads back to it and to no thread before it. (The first alone is true of many a pair
    /// of statically allocated objects.)
    bool is_interpreter(base::Address address) {
        if (!is_writable(address)) return false;
        const auto thread = read(address + layout_.interpreter.threads_head);
        return thread && is_writable(*thread) && read(*thread + layout_.thread.interp) == address &&
               read(*thread + layout_.thread.prev) == base::Address();
    }

    [[nodiscard]] bool is_writable(base::Address address) const {
        if (address.value() % 8 != 0) return false;
        const process::Mapping* mapping = process::find_mapping(maps_, address);
        return mapping != nullptr && mapping->writable;
    }

    std::optional<base::Address> read(base::Address address) {
        ++reads_;
        return memory_.read_address(address);
    }

    const process::Memory& memory_;
    const Module& module_;
    const std::vector<process::Mapping>& maps_;
    const Layout& layout_;
    std::size_t reads_ = 0;
    std::size_t candidates_ = 0;
};

}  // namespace

std::optional<base::Address> find_runtime_by_structure(const process::Memory& memory, const Module& module,
                                                       const std::vector<process::Mapping>& maps,
                                                       const Layout& layout) {
    return Scan(memory, module, maps, layout).run();
}

}  // namespace memattach::python
