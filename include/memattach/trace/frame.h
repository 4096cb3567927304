/// The plain values that the two halves of memattach meet at: one half makes them out of a live process, the
/// other half turns them into a profile and has no process, no privilege and no kernel interface in it.
///
///     FunctionTable table;
///     Stack stack{{table.intern({"load", "/srv/app.py", 10, FunctionKind::python}), 14}, …};     //
///     innermost first
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

namespace memattach::trace {

enum class FunctionKind : std::uint8_t {
    python,
    native,  ///< a C function, or `<native>` with its module's name where only the module is known
    kernel,
    marker,  ///< not code: "[truncated]", "[unknown frame]"
};

/// One function (or module, lambda, comprehension, class body). `name` is the qualified name where the
/// version has it.
struct Function {
    std::string name;
    std::string
        file;  ///< as the code object has it (co_filename); for native ones the module's path; may be empty
    std::uint32_t first_line = 0;
    FunctionKind kind = FunctionKind::python;
    bool operator==(const Function&) const = default;
};

enum class FunctionId : std::uint32_t {};

/// Gives each distinct Function a small number. References stay valid as long as the table does.
class FunctionTable {
  public:
    FunctionId intern(const Function& function);
    [[nodiscard]] const Function& at(FunctionId id) const {
        return functions_.at(static_cast<std::size_t>(id));
    }
    [[nodiscard]] std::size_t size() const { return functions_.size(); }

  private:
    struct Hash {
        std::size_t operator()(const Function& f) const;
    };
    std::deque<Function> functions_;
    std::unordered_map<Function, FunctionId, Hash> ids_;
};

/// A place in a stack. `line` is 0 where the code has none (native frames, instructions without a line).
struct Frame {
    FunctionId function{};
    std::uint32_t line = 0;
    auto operator<=>(const Frame&) const = default;
};

/// Innermost frame first.
using Stack = std::vector<Frame>;

/// Deeper stacks keep their innermost frames and end in a marker frame.
inline constexpr std::size_t kMaxStackDepth = 1024;

}  // namespace memattach::trace
