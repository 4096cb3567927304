// fmt, all of it, for executables that are linked statically: see src/CMakeLists.txt.
#include <fmt/format.h>
