#include "memattach/profile/stacks.h"

#include <algorithm>

namespace memattach::profile {
namespace {

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15ULL;
    return hash ^ (hash >> 29);
}

std::uint64_t key_of(const trace::Frame& frame) {
    return (static_cast<std::uint64_t>(frame.function) << 32) | frame.line;
}

}  // namespace

std::size_t StackTable::NodeHash::operator()(const Node& node) const {
    return mix(mix(0, key_of(node.frame)), node.outer);
}

bool StackTable::same(std::uint32_t leaf, const trace::Stack& stack) const {
    for (const trace::Frame& frame : stack) {
        if (leaf == kNone || nodes_[leaf].frame != frame) return false;
        leaf = nodes_[leaf].outer;
    }
    return leaf == kNone;
}

std::uint32_t StackTable::add_nodes(const trace::Frame* frames, std::size_t count) {
    std::uint32_t outer = kNone;
    for (std::size_t i = count; i-- > 0;) {
        const Node node{frames[i], outer};
        const auto [it, added] = node_ids_.try_emplace(node, static_cast<std::uint32_t>(nodes_.size()));
        if (added) nodes_.push_back(node);
        outer = it->second;
    }
    return outer;
}

StackId StackTable::intern(const trace::Stack& stack) {
    std::uint64_t hash = stack.size();
    for (const trace::Frame& frame : stack) hash = mix(hash, key_of(frame));
    const auto [first, last] = by_hash_.equal_range(hash);
    for (auto it = first; it != last; ++it) {
        if (same(leaves_[it->second], stack)) return static_cast<StackId>(it->second);
    }
    if (nodes_.size() + stack.size() > kMaxNodes && stack.size() > 1) {
        ++cut_;
        return intern({stack.front()});
    }
    const auto id = static_cast<std::uint32_t>(leaves_.size());
    leaves_.push_back(add_nodes(stack.data(), stack.size()));
    by_hash_.emplace(hash, id);
    return static_cast<StackId>(id);
}

void StackTable::read(StackId id, trace::Stack& out) const {
    out.clear();
    for (std::uint32_t node = leaves_.at(static_cast<std::size_t>(id)); node != kNone;
         node = nodes_[node].outer) {
        out.push_back(nodes_[node].frame);
    }
}

trace::Stack StackTable::at(StackId id) const {
    trace::Stack stack;
    read(id, stack);
    return stack;
}

}  // namespace memattach::profile
