#pragma once

namespace memattach::session {

/// Raises this process's soft limit of open files to the hard one while it lives: each thread of the target
/// takes one or two descriptors, and the usual soft limit is 1,024.
class DescriptorLimit {
  public:
    DescriptorLimit();
    ~DescriptorLimit();
    DescriptorLimit(const DescriptorLimit&) = delete;
    DescriptorLimit& operator=(const DescriptorLimit&) = delete;

    /// For a forked child: what it executes gets the limit as it was (select(2) breaks with higher ones).
    static void give_up();
};

}  // namespace memattach::session
