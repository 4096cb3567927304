#include "outputs.h"

#include <fmt/format.h>

#include <exception>
#include <utility>

#include "memattach/base/error.h"
#include "memattach/base/text.h"
#include "memattach/report/collapsed.h"
#include "memattach/report/html.h"
#include "memattach/report/json.h"
#include "memattach/report/metric.h"
#include "memattach/report/speedscope.h"
#include "memattach/report/table.h"
#include "terminal.h"

namespace memattach::cli {
namespace {

/// The metric that was asked for, or the first that the profile has.
report::Metric metric_of(const profile::Profile& profile, const std::string& name) {
    const auto metrics = report::metrics_of(profile);
    if (name.empty()) return metrics.empty() ? report::Metric::cpu_samples : metrics.front();
    std::string names;
    for (const report::Metric metric : metrics) {
        if (report::name_of(metric) == name) return metric;
        names += fmt::format("{}{}", names.empty() ? "" : ", ", report::name_of(metric));
    }
    base::throw_error("this profile has no '{}' to weigh stacks by; it has: {}", base::printable(name, 40),
                      names.empty() ? "nothing" : names);
}

}  // namespace

Outputs::Outputs(const session::Options& options, const std::string& metric) {
    if (!options.html.empty()) add(options.html, &report::to_html);
    if (!options.json.empty()) add(options.json, &report::to_json);
    if (!options.speedscope.empty()) add(options.speedscope, &report::to_speedscope);
    if (!options.collapsed.empty()) {
        add(options.collapsed, [metric](const profile::Profile& profile) {
            return report::to_collapsed(profile, metric_of(profile, metric));
        });
    }
    if (options.cli) {
        add("-",
            [color = options.color, functions = options.reduced_profile](const profile::Profile& profile) {
                report::TableOptions table;
                table.width = stdout_columns();
                table.color = color;
                table.functions = functions;
                return report::to_table(profile, table);
            });
    }
}

void Outputs::add(const std::string& path, std::function<std::string(const profile::Profile&)> render) {
    for (const Output& other : outputs_) {
        if (other.file.path() == path)
            base::throw_error("two outputs want the same file, {}", base::printable(path, 300));
    }
    outputs_.push_back({OutputFile(path), std::move(render)});
}

void Outputs::write(const profile::Profile& profile) {
    std::exception_ptr failure;
    for (const bool to_stdout : {false, true}) {
        for (Output& output : outputs_) {
            if (output.file.is_stdout() != to_stdout) continue;
            try {
                output.file.write(output.render(profile));
                output.file.commit();
                if (output.file.is_new_file()) written_.push_back(output.file.path());
            } catch (...) {
                if (!failure) failure = std::current_exception();
            }
        }
    }
    if (failure) std::rethrow_exception(failure);
}

std::string Outputs::files_written() const {
    std::string names;
    for (const std::string& path : written_)
        names += (names.empty() ? "" : ", ") + base::printable(path, 300);
    return names;
}

}  // namespace memattach::cli
