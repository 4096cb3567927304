#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "memattach/trace/frame.h"

namespace memattach::profile {

enum class StackId : std::uint32_t {};

/// Gives each distinct stack a small number. Stacks share the nodes of their outer frames, so that five
/// thousand stacks of a deep program cost little more than the tree that they form:
///
///     main ─ serve ─┬─ parse
///                   └─ handle ─ query       2 stacks, 5 nodes
class StackTable {
  public:
    /// Past this many nodes (a target that makes up frames) a new stack keeps its innermost frame alone.
    static constexpr std::size_t kMaxNodes = 4'000'000;

    StackId intern(const trace::Stack& stack);

    /// Innermost frame first, as it was interned.
    [[nodiscard]] trace::Stack at(StackId id) const;
    void read(StackId id, trace::Stack& out) const;

    [[nodiscard]] std::size_t size() const { return leaves_.size(); }
    /// How many stacks were cut because the table was full.
    [[nodiscard]] std::uint64_t cut() const { return cut_; }

  private:
    static constexpr std::uint32_t kNone = ~0U;
    struct Node {
        trace::Frame frame;
        std::uint32_t outer;
    };
    struct NodeHash {
        std::size_t operator()(const Node& node) const;
    };
    struct SameNode {
        bool operator()(const Node& a, const Node& b) const {
            return a.frame == b.frame && a.outer == b.outer;
        }
    };

    [[nodiscard]] bool same(std::uint32_t leaf, const trace::Stack& stack) const;
    std::uint32_t add_nodes(const trace::Frame* frames, std::size_t count);

    std::vector<Node> nodes_;
    std::unordered_map<Node, std::uint32_t, NodeHash, SameNode> node_ids_;
    std::vector<std::uint32_t> leaves_;
    std::unordered_multimap<std::uint64_t, std::uint32_t> by_hash_;  ///< of the whole stack → StackId
    std::uint64_t cut_ = 0;
};

}  // namespace memattach::profile
