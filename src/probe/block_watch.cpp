#include "memattach/probe/block_watch.h"

#include <time.h>

#include <algorithm>

#include "block_judge.h"
#include "memattach/base/clock.h"
#include "memattach/probe/pymalloc_block.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
/// Looks are gathered for so long, for one system call to serve many.
constexpr std::uint64_t kTickNs = 4 * kMs;
/// A batch is some 100 µs of work: samples of the CPU are due as well.
constexpr std::size_t kBatch = 128;
/// The first looks come so quickly one after the other, later ones when the age has grown by a share.
constexpr unsigned kFirstLooks = 6;
constexpr double kFirstGapNs = 3e6;
/// So much may be spent before the share counts.
constexpr double kAdvanceNs = 20e6;
constexpr unsigned kMostUnsure = 5;
constexpr std::uint64_t kLowest = 4096, kHighest = std::uint64_t{1} << 47;

std::uint64_t key_of(trace::AllocKind kind, std::uint64_t window) {
    return window * 4 + static_cast<std::uint64_t>(kind);
}

/// Of this thread: the machine does other things meanwhile.
std::uint64_t thread_cpu_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

BlockWatch::BlockWatch(const process::Memory& memory, const python::Runtime& runtime, const SiteMap& sites,
                       double growth, bool keeps_numbers)
    : memory_(memory),
      types_(std::make_unique<BlockTypes>(memory, runtime.layout, runtime.free_threaded)),
      always_there_(runtime.address),
      pymalloc_(sites.object_name.starts_with("pymalloc")),
      mimalloc_(sites.object_name.starts_with("mimalloc")),
      glibc_(sites.malloc_name == "glibc"),
      objects_in_glibc_(glibc_ && sites.object_name.starts_with("malloc")),
      split_references_(runtime.free_threaded),
      keeps_numbers_(keeps_numbers),
      growth_(growth) {}

BlockWatch::~BlockWatch() = default;

bool BlockWatch::has_chunks(const Block& block) const {
    if (block.kind == trace::AllocKind::malloc || block.kind == trace::AllocKind::large) return glibc_;
    return block.kind == trace::AllocKind::object && objects_in_glibc_;
}

void BlockWatch::add(const trace::Alloc& alloc) {
    if (alloc.address < kLowest || alloc.address >= kHighest) return;
    const std::uint64_t bits = trace::thinning_bits(alloc.address, alloc.time_ns);
    if ((bits & ((std::uint64_t{1} << thinned_) - 1)) != 0) {
        blocks_.erase(alloc.address);  // whatever was there has ended
        return;
    }
    Block block;
    block.size_bytes = alloc.size_bytes;
    block.birth_ns = block.seen_ns = alloc.time_ns;
    block.window = alloc.window;
    block.pid = alloc.pid;
    block.kind = alloc.kind;
    block.serial = ++serials_;
    const auto added = blocks_.insert_or_assign(alloc.address, block).first;
    if (alloc.kind == trace::AllocKind::large) {
        start(alloc.address, added->second, base::monotonic_ns());  // their frees aren't watched for
    } else if (alloc.window != 0)
        open_[key_of(alloc.kind, alloc.window)].push_back(alloc.address);
    if (blocks_.size() > kMostBlocks) thin();
}

void BlockWatch::thin() {
    std::erase_if(blocks_, [&](const auto& entry) {
        return (trace::thinning_bits(entry.first, entry.second.birth_ns) >> thinned_ & 1) != 0;
    });
    ++thinned_;
}

void BlockWatch::set_content(std::uint64_t address, std::uint64_t window, const BlockContent& content) {
    const auto found = blocks_.find(address);
    if (found == blocks_.end() || found->second.window != window ||
        content.count > BlockContent::words_of(found->second.size_bytes))
        return;
    found->second.content = content;
}

void BlockWatch::window_over(trace::AllocKind kind, std::uint64_t window, std::uint64_t end_ns,
                             std::uint64_t now_ns) {
    if (window == 0) {
        for (auto& [address, block] : blocks_) {
            if (block.kind != kind || block.window != 0 || block.looked_at) continue;
            block.seen_ns = end_ns;
            start(address, block, now_ns);
        }
        return;
    }
    const auto open = open_.find(key_of(kind, window));
    if (open == open_.end()) return;
    for (const std::uint64_t address : open->second) {
        const auto found = blocks_.find(address);
        if (found == blocks_.end() || found->second.window != window || found->second.looked_at) continue;
        found->second.seen_ns = std::max(end_ns, found->second.birth_ns);
        start(address, found->second, now_ns);
    }
    open_.erase(open);
}

void BlockWatch::start(std::uint64_t address, Block& block, std::uint64_t now_ns) {
    if (start_ns_ == 0) start_ns_ = now_ns;
    block.looked_at = true;
    queue(address, block, now_ns, 0);
}

void BlockWatch::queue(std::uint64_t address, const Block& block, std::uint64_t now_ns, double gap_ns) {
    queue_.push({now_ns + static_cast<std::uint64_t>(gap_ns), address, block.serial});
}

/// How much of what may be spent has been.
double BlockWatch::load(std::uint64_t now_ns) const {
    const double passed = static_cast<double>(now_ns - std::min(now_ns, start_ns_));
    return static_cast<double>(figures_.spent_ns) / (kMostShare * passed + kAdvanceNs);
}

/// At random, so that no rhythm of the program's keeps looks from falling where a block is free.
double BlockWatch::gap_after(const Block& block, std::uint64_t now_ns) {
    const auto age = static_cast<double>(now_ns - std::min(now_ns, block.birth_ns));
    double gap = block.looks < kFirstLooks ? kFirstGapNs : std::max(kFirstGapNs, growth_ * age);
    gap *= std::uniform_real_distribution<double>(0.5, 1.5)(random_);
    return gap * std::max(1.0, 2 * load(now_ns));
}

std::uint64_t BlockWatch::due_ns() const {
    if (queue_.empty() || gone_) return ~std::uint64_t{0};
    return std::max(queue_.top().time_ns, not_before_ns_);
}

void BlockWatch::look(std::uint64_t now_ns, std::vector<trace::Free>& ended) {
    if (now_ns < due_ns()) return;
    not_before_ns_ = now_ns + kTickNs;
    if (load(now_ns) >= 1) return;
    std::vector<Look> batch;
    while (!queue_.empty() && queue_.top().time_ns <= now_ns && batch.size() < kBatch) {
        const Due due = queue_.top();
        queue_.pop();
        const auto block = blocks_.find(due.address);
        if (block == blocks_.end() || block->second.serial != due.serial) continue;
        Look& look = batch.emplace_back();
        look.address = due.address;
    }
    if (batch.size() == kBatch) not_before_ns_ = now_ns;  // there are more
    look_at(batch, now_ns, ended);
}

void BlockWatch::look_at(std::vector<Look>& batch, std::uint64_t now_ns, std::vector<trace::Free>& ended) {
    if (batch.empty() || gone_) return;
    const std::uint64_t begin_ns = thread_cpu_ns();
    if (read(batch)) {
        for (const Look& look : batch) {
            const auto block = blocks_.find(look.address);
            if (block == blocks_.end()) continue;
            switch (judge(look, block->second)) {
                case Verdict::ended:
                    end(block, now_ns, ended);
                    break;
                case Verdict::lives:
                    block->second.unsure = 0;
                    block->second.seen_ns = std::max(block->second.seen_ns, now_ns);
                    if (block->second.looks < 0xFFFF) ++block->second.looks;
                    queue(look.address, block->second, now_ns, gap_after(block->second, now_ns));
                    break;
                case Verdict::unsure:
                    ++block->second.unsure;
                    queue(look.address, block->second, now_ns, kFirstGapNs / 2);
                    break;
            }
        }
        figures_.looks += batch.size();
    }
    figures_.spent_ns += thread_cpu_ns() - begin_ns;
}

void BlockWatch::end(Blocks::iterator block, std::uint64_t now_ns, std::vector<trace::Free>& ended) {
    trace::Free free;
    free.time_ns =
        block->second.seen_ns + (std::max(now_ns, block->second.seen_ns) - block->second.seen_ns) / 2;
    free.pid = block->second.pid;
    free.address = block->first;
    ended.push_back(free);
    blocks_.erase(block);
    ++figures_.ended;
}

/// False where the target is gone: nothing can be said then.
bool BlockWatch::read(std::vector<Look>& batch) {
    pieces_.clear();
    for (Look& look : batch) {
        const Block& block = blocks_.at(look.address);
        const std::size_t count = BlockContent::words_of(block.size_bytes);
        const auto words = std::as_writable_bytes(std::span(look.words));
        const base::Address at(look.address);
        look.first_piece = static_cast<std::uint32_t>(pieces_.size());
        if (has_chunks(block)) {
            pieces_.push_back({at - 8, words.first(8 + 8 * count)});
            const auto to_next = to_next_size(block.content.before);
            look.has_next = to_next.has_value();
            if (to_next) pieces_.push_back({at + *to_next, words.last(8)});
        } else {
            pieces_.push_back({at, words.subspan(8, 8 * count)});
        }
    }
    std::uint64_t canary = 0;
    pieces_.push_back({always_there_, std::as_writable_bytes(std::span(&canary, 1))});
    failed_.assign(pieces_.size(), false);
    for (std::size_t i = 0; i < pieces_.size();) {
        i += memory_.read_pieces(std::span(pieces_).subspan(i));
        ++figures_.system_calls;
        if (i < pieces_.size()) failed_[i++] = true;
    }
    if (failed_.back()) gone_ = true;
    return !gone_;
}

BlockWatch::Verdict BlockWatch::judge(const Look& look, Block& block) {
    if (failed_[look.first_piece]) return Verdict::ended;
    const bool has_next = look.has_next && !failed_[look.first_piece + 1];
    if (block.kind == trace::AllocKind::mmap) return Verdict::lives;
    BlockContent now;
    now.count = BlockContent::words_of(block.size_bytes);
    now.before = look.words[0];
    now.settled = 1;
    std::copy_n(look.words.begin() + 1, now.count, now.words.begin());
    if (has_chunks(block) && is_freed_chunk(block.content, now, look.address,
                                            has_next ? std::optional(look.words.back()) : std::nullopt))
        return Verdict::ended;
    if (block.type_index == 0 && block.content.count != 0 && block.looks == 0) {
        const BlockType type = types_->recognise(block.content, block.size_bytes);
        block.type_index = type.index;
        block.type_changes = static_cast<std::uint8_t>(type.changes);
    }
    const bool is_pooled = block.kind == trace::AllocKind::object && pymalloc_;
    if (is_pooled && pool_bytes_ == 0)
        pool_bytes_ = pymalloc_pool_bytes(memory_, base::Address(look.address)).value_or(0);
    const BlockType type{block.type_index, static_cast<BlockType::Changes>(block.type_changes)};
    const auto compare_with = [&](std::uint64_t pool_bytes) {
        const FreeMarks marks{pool_bytes, mimalloc_ && block.kind == trace::AllocKind::object,
                              split_references_, keeps_numbers_};
        return compare(block.content, now, type, look.address, block.size_bytes, marks);
    };
    Sight sight = compare_with(is_pooled && block.unsure < kMostUnsure ? pool_bytes_ : 0);
    if (sight == Sight::maybe_free) {
        const Verdict verdict = ask_pool(look.address);
        if (verdict != Verdict::lives) return verdict;
        sight = compare_with(0);
    }
    if (sight == Sight::changed) return Verdict::ended;
    block.content = now;
    if (block.type_index == 0 && block.looks < 2) {
        const BlockType found = types_->recognise(now, block.size_bytes);
        block.type_index = found.index;
        block.type_changes = static_cast<std::uint8_t>(found.changes);
    }
    return Verdict::lives;
}

BlockWatch::Verdict BlockWatch::ask_pool(std::uint64_t address) {
    ++figures_.system_calls;
    ++figures_.pools;
    const auto pool = read_pool(memory_, address & ~(pool_bytes_ - 1), pool_bytes_, pool_);
    const auto is_free = pool ? is_free_in_pool(*pool, address - pool->address) : std::nullopt;
    if (!is_free) return Verdict::unsure;
    return *is_free ? Verdict::ended : Verdict::lives;
}

void BlockWatch::look_last(std::vector<trace::Free>& ended, std::vector<trace::Unseen>& unseen) {
    constexpr unsigned kRounds = 4;
    constexpr timespec kPause{0, 2'000'000};
    for (unsigned round = 0; round < kRounds && !gone_; ++round) {
        // All of them, then those again that have hardly been looked at.
        std::vector<std::uint64_t> addresses;
        for (const auto& [address, block] : blocks_)
            if (block.looked_at && (round == 0 || block.looks < kFirstLooks || block.unsure > 0))
                addresses.push_back(address);
        if (addresses.empty()) break;
        if (round > 0) ::nanosleep(&kPause, nullptr);
        for (std::size_t i = 0; i < addresses.size(); i += kBatch) {
            std::vector<Look> batch;
            for (std::size_t k = i; k < std::min(addresses.size(), i + kBatch); ++k)
                batch.emplace_back().address = addresses[k];
            look_at(batch, base::monotonic_ns(), ended);
        }
    }
    const std::uint64_t now_ns = base::monotonic_ns();
    for (auto block = blocks_.begin(); block != blocks_.end();) {
        const auto next = std::next(block);
        if (block->second.looked_at && gone_) {
            if (block->second.looks == 0) {
                end(block, now_ns, ended);
            } else {
                unseen.push_back({block->second.pid, block->first});
            }
        }
        block = next;
    }
}

}  // namespace memattach::probe
