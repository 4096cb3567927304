#pragma once

#include <string>

#include "memattach/profile/builder.h"

namespace memattach::test {

/// A function table and the little that makes stacks and samples short to write.
struct Scenario {
    trace::FunctionTable table;

    trace::Frame frame(const std::string& name, const std::string& file, std::uint32_t line,
                       trace::FunctionKind kind = trace::FunctionKind::python) {
        return {table.intern({name, file, 1, kind}), line};
    }

    static trace::CpuSample sample(trace::CpuMode mode, bool gil = true, int tid = 7) {
        trace::CpuSample s;
        s.pid = 7;
        s.tid = tid;
        s.on_cpu = true;
        s.holds_gil = gil;
        s.mode = mode;
        return s;
    }

    static trace::CpuSample waiting(int tid = 7) {
        trace::CpuSample s;
        s.pid = 7;
        s.tid = tid;
        return s;
    }

    /// The profile, its sums checked.
    static profile::Profile finish(const profile::Builder& builder, double duration_s) {
        profile::Session session;
        session.duration_s = duration_s;
        profile::Profile p = builder.finish({}, session, {});
        profile::check(p);
        return p;
    }

    static const profile::LineRow* line(const profile::Profile& profile, const std::string& path,
                                        std::uint32_t number) {
        for (const profile::FileRow& file : profile.files) {
            if (file.path != path) continue;
            for (const profile::LineRow& row : file.lines) {
                if (row.line == number) return &row;
            }
        }
        return nullptr;
    }
};

}  // namespace memattach::test
