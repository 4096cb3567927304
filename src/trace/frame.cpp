#include "memattach/trace/frame.h"

namespace memattach::trace {

std::size_t FunctionTable::Hash::operator()(const Function& f) const {
    const std::hash<std::string> hash;
    return hash(f.name) * 31 + hash(f.file) * 17 + f.first_line;
}

FunctionId FunctionTable::intern(const Function& function) {
    const auto [it, added] = ids_.try_emplace(function, static_cast<FunctionId>(functions_.size()));
    if (added) functions_.push_back(function);
    return it->second;
}

}  // namespace memattach::trace
