#include "memattach/probe/large_entry.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "memattach/probe/planned_site.h"
#include "memattach/trace/events.h"

namespace memattach::probe {
namespace {

using trace::LiveBlocks;

constexpr std::uint64_t kPage = 4096;
constexpr std::size_t kMostSteps = 400, kMostPages = 256;
/// Anywhere: the stack is a copy of nothing.
constexpr std::uint64_t kStackTop = 0x7000'0000'8000, kReturn = 0x7000'1000'0000;
constexpr std::uint64_t kZeroFlag = 1U << 6;
/// No request up to this may come by: there are too many of them. The larger bound where it can be
/// had: 2.43's code tells chunks of 44 KiB by a branch, and of 160 KiB by a conditional move.
constexpr std::array<std::uint64_t, 2> kNeverUpTo = {96 << 10, 40'000};
constexpr std::array<std::uint64_t, 5> kSmall = {64, 1'000, 2'000, 8'000, 40'000};
constexpr std::uint64_t kLarge = 8 << 20, kMostLeast = 1 << 20;

/// Of the stack, from rsp to where the caller's return address is, at most.
constexpr std::size_t kMostStack = 512;

/// The target's memory as it was when it was first looked at; writes stay here.
class Copy final : public OperandMemory {
  public:
    explicit Copy(const process::Memory& memory) : memory_(memory) {
        for (std::uint64_t page = kStackTop - 4 * kPage; page < kStackTop + kPage; page += kPage) read_[page];
    }

    bool load(std::uint64_t address, std::span<std::byte> out) override {
        return each_page(address, out.size(),
                         [&](Page& page, std::size_t at, std::size_t done, std::size_t n) {
                             std::copy_n(page.begin() + static_cast<std::ptrdiff_t>(at), n,
                                         out.begin() + static_cast<std::ptrdiff_t>(done));
                         });
    }
    bool store(std::uint64_t address, std::span<const std::byte> bytes) override {
        return each_page(
            address, bytes.size(),
            [&](Page& page, std::size_t at, std::size_t done, std::size_t n) {
                std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(done), n,
                            page.begin() + static_cast<std::ptrdiff_t>(at));
            },
            true);
    }
    /// Forgets what was written.
    void restore() { written_.clear(); }

  private:
    using Page = std::array<std::byte, kPage>;

    template <typename Visit>
    bool each_page(std::uint64_t address, std::size_t count, Visit visit, bool to_write = false) {
        for (std::size_t done = 0; done < count;) {
            const std::uint64_t at = (address + done) % kPage;
            const std::size_t n = std::min<std::size_t>(count - done, kPage - at);
            Page* page = find(address + done - at, to_write);
            if (page == nullptr) return false;
            visit(*page, at, done, n);
            done += n;
        }
        return true;
    }

    Page* find(std::uint64_t address, bool to_write) {
        if (const auto written = written_.find(address); written != written_.end()) return &written->second;
        if (read_.size() >= kMostPages && !read_.contains(address)) return nullptr;
        const auto [page, is_new] = read_.try_emplace(address);
        if (is_new && !memory_.read_exactly(base::Address(address), page->second)) {
            read_.erase(page);
            return nullptr;
        }
        return to_write ? &(written_[address] = page->second) : &page->second;
    }

    const process::Memory& memory_;
    std::unordered_map<std::uint64_t, Page> read_, written_;
};

/// The instructions that a call executes, and what the registers are in front of each.
class Follower {
  public:
    struct Frame {
        std::uint64_t slot = 0, return_address = 0;
    };
    struct Step {
        std::uint64_t address = 0;
        user_regs_struct regs{};
        bool is_condition = false;
        std::vector<Frame> frames;  ///< outermost first: the call itself
    };
    using Path = std::vector<Step>;

    Follower(const process::Memory& memory, std::uint64_t fs_base) : copy_(memory), fs_base_(fs_base) {}

    /// `inverted`: the step whose condition is taken for its opposite. `lower`: the caller's stack is so many
    /// bytes farther down.
    Path call(const Site& site, std::uint64_t bytes, std::size_t inverted = kMostSteps,
              std::uint64_t lower = 0) {
        copy_.restore();
        user_regs_struct regs{};
        regs.fs_base = fs_base_;
        regs.eflags = 0x202;
        regs.rsp = kStackTop - lower - 8;  // as behind a call
        regs.rip = site.address.value();
        regs.rdi = site.args.count == Argument::none ? bytes : 1;
        regs.rsi = site.args.count == Argument::none ? 0 : bytes;
        const std::uint64_t back = kReturn;
        Path path;
        if (!copy_.store(regs.rsp, std::as_bytes(std::span(&back, 1)))) return path;
        std::vector<Frame> frames{{regs.rsp, back}};
        while (path.size() < kMostSteps && regs.rip != kReturn) {
            std::array<std::byte, 16> bytes_there{};
            if (!copy_.load(regs.rip, bytes_there)) break;
            const auto instruction = decode(bytes_there);
            Step step;
            step.address = regs.rip;
            step.regs = regs;
            step.is_condition = instruction && instruction->op == Op::jcc;
            step.frames = frames;
            path.push_back(std::move(step));
            if (!instruction) {
                const std::size_t length = exchange_length(bytes_there);
                if (length == 0) break;
                regs.eflags |= kZeroFlag;  // the lock was free
                regs.rip += length;
                continue;
            }
            Instruction executed = *instruction;
            if (path.size() - 1 == inverted) executed.condition ^= 1;
            if (!emulate(executed, base::Address(regs.rip), regs, copy_)) break;
            if (executed.op == Op::call) frames.push_back({regs.rsp, path.back().address + executed.length});
            if (executed.op == Op::ret && frames.size() > 1) frames.pop_back();
        }
        return path;
    }

    std::optional<std::array<std::byte, 16>> code(std::uint64_t address) {
        std::array<std::byte, 16> bytes{};
        if (!copy_.load(address, bytes)) return std::nullopt;
        return bytes;
    }

  private:
    /// `lock cmpxchg` with a register and memory (Intel SDM volume 2: F0 [REX] 0F B1 /r), which takes a lock;
    /// 0 for anything else.
    static std::size_t exchange_length(std::span<const std::byte> code) {
        std::size_t at = 0;
        if (code[at++] != std::byte{0xF0}) return 0;
        if ((code[at] & std::byte{0xF0}) == std::byte{0x40}) ++at;
        if (code[at] != std::byte{0x0F} || code[at + 1] != std::byte{0xB1}) return 0;
        // Its operands are as those of a mov between the same places.
        std::array<std::byte, 16> as_move{};
        std::size_t length = 0;
        if (at == 2) as_move[length++] = code[1];
        as_move[length++] = std::byte{0x89};
        std::copy_n(code.begin() + static_cast<std::ptrdiff_t>(at) + 2, 8,
                    as_move.begin() + static_cast<std::ptrdiff_t>(length));
        const auto move = decode(as_move);
        if (!move || move->dst.kind != Operand::Kind::mem) return 0;
        return move->length + 2;  // the prefix, and one byte more of opcode
    }

    Copy copy_;
    std::uint64_t fs_base_;
};

const Follower::Step* find(const Follower::Path& path, std::uint64_t address) {
    const auto found = std::find_if(path.begin(), path.end(),
                                    [&](const Follower::Step& step) { return step.address == address; });
    return found == path.end() ? nullptr : &*found;
}

constexpr std::uint8_t kRsp = 4;

/// A breakpoint there costs no more than it must: nothing but registers is concerned.
bool is_cheap(const Instruction& in) {
    const auto is_register = [](const Operand& operand) { return operand.kind == Operand::Kind::reg; };
    return (in.op == Op::mov || in.op == Op::lea) && in.length > 1 && is_register(in.dst) &&
           in.dst.reg != kRsp &&
           (in.op == Op::lea || is_register(in.src) || in.src.kind == Operand::Kind::imm);
}

std::optional<LargeEntry::Way> way_of(const Follower::Step& step) {
    LargeEntry::Way way;
    const std::uint64_t stack = step.regs.rsp;
    for (const Follower::Frame& frame : step.frames) {
        if (frame.slot < stack || frame.slot - stack + 8 > kMostStack) return std::nullopt;
        const auto offset = static_cast<std::uint32_t>(frame.slot - stack);
        if (&frame == &step.frames.front()) {
            way.return_slot_bytes = offset;
        } else {
            way.returns.push_back({offset, frame.return_address});
        }
    }
    return way;
}

class Search {
  public:
    Search(Follower& follower, const Site& malloc) : follower_(follower), malloc_(malloc) {}

    std::optional<LargeEntry> run() {
        for (const std::uint64_t never : kNeverUpTo)
            if (auto entry = run(never)) return entry;
        return std::nullopt;
    }

    std::optional<LargeEntry> run(std::uint64_t never_up_to) {
        never_up_to_ = never_up_to;
        const Follower::Path large = follower_.call(malloc_, kLarge);
        std::vector<Follower::Path> small{follower_.call(malloc_, never_up_to)};
        for (const std::uint64_t bytes : kSmall) small.push_back(follower_.call(malloc_, bytes));
        for (const Follower::Step& step : large) {
            const bool is_common = std::any_of(small.begin(), small.end(), [&](const Follower::Path& path) {
                return find(path, step.address) != nullptr;
            });
            if (is_common) continue;
            if (auto entry = try_at(step)) return entry;
        }
        return std::nullopt;
    }

    void add_ways(LargeEntry& entry, const Site& site) {
        const Follower::Path path = follower_.call(site, kLarge);
        add_way(entry, path);
        // Where frames are as long as the caller's stack is aligned nothing can be said of others'.
        for (const std::uint64_t lower : {16, 32, 48})
            add_way(entry, follower_.call(site, kLarge, kMostSteps, lower));
        for (std::size_t i = 0; i < path.size() && path[i].address != entry.address; ++i)
            if (path[i].is_condition) add_way(entry, follower_.call(site, kLarge, i));
    }

  private:
    static void add_way(LargeEntry& entry, const Follower::Path& path) {
        const Follower::Step* step = find(path, entry.address);
        if (step == nullptr) return;
        const auto way = way_of(*step);
        if (way && std::find(entry.ways.begin(), entry.ways.end(), *way) == entry.ways.end())
            entry.ways.push_back(*way);
    }

    std::optional<LargeEntry> try_at(const Follower::Step& step) {
        const auto code = follower_.code(step.address);
        const auto instruction = code ? decode(*code) : std::nullopt;
        if (!instruction || !is_cheap(*instruction)) return std::nullopt;
        LargeEntry entry;
        entry.address = step.address;
        entry.displaced = *instruction;
        entry.original = (*code)[0];
        const auto size_register = find_size(step.address);
        const auto least = find_least(step.address);
        if (!size_register || !least) return std::nullopt;
        entry.size_register = *size_register;
        entry.least_bytes = *least;
        return entry;
    }

    /// The register that holds the chunk's size whatever that is.
    std::optional<std::uint8_t> find_size(std::uint64_t address) {
        std::uint32_t holds_it = 0xFFFF;
        for (const std::uint64_t bytes : kSizes) {
            const Follower::Path path = follower_.call(malloc_, bytes);
            const Follower::Step* step = find(path, address);
            for (std::uint8_t number = 0; number < 16; ++number)
                if (step == nullptr || register_of(step->regs, number) != LiveBlocks::chunk_of(bytes))
                    holds_it &= ~(1U << number);
        }
        if (holds_it == 0) return std::nullopt;
        return static_cast<std::uint8_t>(std::countr_zero(holds_it));
    }

    [[nodiscard]] bool comes_by(std::uint64_t address, std::uint64_t bytes) {
        return find(follower_.call(malloc_, bytes), address) != nullptr;
    }

    std::optional<std::uint64_t> find_least(std::uint64_t address) {
        std::uint64_t below = never_up_to_;
        std::uint64_t from = kLarge;
        while (from - below > 1) {
            const std::uint64_t middle = below + (from - below) / 2;
            (comes_by(address, middle) ? from : below) = middle;
        }
        if (from > kMostLeast) return std::nullopt;
        for (std::uint64_t bytes = from; bytes < std::uint64_t{1} << 36; bytes += bytes / 2 + 17)
            if (!comes_by(address, bytes)) return std::nullopt;
        for (std::uint64_t bytes = from - 1; bytes > 0; bytes -= bytes / 3 + 1)
            if (comes_by(address, bytes)) return std::nullopt;
        return from;
    }

    static constexpr std::array<std::uint64_t, 3> kSizes = {kMostLeast + 8, 3'000'000, kLarge + 100'001};

    Follower& follower_;
    const Site& malloc_;
    std::uint64_t never_up_to_ = 0;
};

}  // namespace

std::optional<LargeEntry::Call> LargeEntry::find_call(const process::Memory& memory,
                                                      const user_regs_struct& regs) const {
    std::array<std::byte, kMostStack> bytes;
    const auto stack = std::span(bytes).first(memory.read_up_to(base::Address(regs.rsp), bytes));
    const auto word = [&](std::uint32_t offset) {
        std::uint64_t value = 0;
        if (offset + sizeof value <= stack.size()) std::memcpy(&value, stack.data() + offset, sizeof value);
        return value;
    };
    const auto is_this = [&](const Way& way) {
        return std::all_of(way.returns.begin(), way.returns.end(),
                           [&](const Word& w) { return word(w.offset) == w.value; });
    };
    const auto way = std::find_if(ways.begin(), ways.end(), is_this);
    const std::uint64_t chunk = register_of(regs, size_register);
    if (way == ways.end() || chunk < LiveBlocks::chunk_of(least_bytes)) return std::nullopt;
    Call call;
    call.stack_pointer = regs.rsp + way->return_slot_bytes;
    call.return_address = word(way->return_slot_bytes);
    if (call.return_address == 0) return std::nullopt;
    return call;
}

bool comes_by_large(const Site& site, const user_regs_struct& regs) {
    if (site.group != trace::AllocKind::malloc) return false;
    return site.symbol == "malloc" || site.symbol == "calloc" ||
           (site.symbol == "realloc" && argument(site.args.old, regs) == 0);
}

std::optional<LargeEntry> find_large_entry(const process::Memory& memory, const SiteMap& sites,
                                           std::uint64_t fs_base) {
    if (sites.malloc_name != "glibc" || fs_base == 0) return std::nullopt;
    const auto site_of = [&](std::string_view symbol) {
        return std::find_if(sites.sites.begin(), sites.sites.end(),
                            [&](const Site& site) { return site.symbol == symbol; });
    };
    const auto malloc = site_of("malloc");
    const auto calloc = site_of("calloc");
    if (malloc == sites.sites.end() || calloc == sites.sites.end()) return std::nullopt;
    Follower follower(memory, fs_base);
    Search search(follower, *malloc);
    auto entry = search.run();
    if (!entry) return std::nullopt;
    search.add_ways(*entry, *malloc);
    const std::size_t of_malloc = entry->ways.size();
    search.add_ways(*entry, *calloc);
    if (of_malloc == 0 || entry->ways.size() == of_malloc) return std::nullopt;
    // Each must be told from the others by what it returns to.
    for (const LargeEntry::Way& way : entry->ways) {
        const auto alike = std::count_if(entry->ways.begin(), entry->ways.end(),
                                         [&](const auto& other) { return other.returns == way.returns; });
        if (way.returns.empty() || alike != 1) return std::nullopt;
    }
    return entry;
}

}  // namespace memattach::probe
