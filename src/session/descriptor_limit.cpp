#include "memattach/session/descriptor_limit.h"

#include <sys/resource.h>

namespace memattach::session {
namespace {

rlimit original{};
bool raised = false;

}  // namespace

DescriptorLimit::DescriptorLimit() {
    if (::getrlimit(RLIMIT_NOFILE, &original) != 0 || original.rlim_cur >= original.rlim_max) return;
    rlimit wanted = original;
    wanted.rlim_cur = original.rlim_max;
    raised = ::setrlimit(RLIMIT_NOFILE, &wanted) == 0;
}

DescriptorLimit::~DescriptorLimit() {
    give_up();
}

void DescriptorLimit::give_up() {
    if (raised) ::setrlimit(RLIMIT_NOFILE, &original);
    raised = false;
}

}  // namespace memattach::session
