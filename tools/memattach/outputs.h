#pragma once

#include <functional>
#include <string>
#include <vector>

#include "memattach/profile/profile.h"
#include "memattach/session/options.h"
#include "output_file.h"

namespace memattach::cli {

/// Everything that a profile is to be written to. Made before the profiling, when what can't be written is
/// found out.
class Outputs {
  public:
    /// `metric`: what collapsed stacks are weighed by, a name that report::name_of() gives; empty: the first
    /// there is.
    Outputs(const session::Options& options, const std::string& metric);

    /// Renders and writes all, files first and stdout last. One that fails doesn't keep the others from being
    /// written; the first failure is thrown at the end.
    void write(const profile::Profile& profile);

    /// "out.html, out.json": the files written, without stdout and devices; empty where there are none.
    [[nodiscard]] std::string files_written() const;

  private:
    struct Output {
        OutputFile file;
        std::function<std::string(const profile::Profile&)> render;
    };
    void add(const std::string& path, std::function<std::string(const profile::Profile&)> render);

    std::vector<Output> outputs_;
    std::vector<std::string> written_;
};

}  // namespace memattach::cli
