#include "memattach/base/error.h"

#include <system_error>

namespace memattach::base {

std::string errno_text(int error) {
    return std::generic_category().message(error);
}

}  // namespace memattach::base
