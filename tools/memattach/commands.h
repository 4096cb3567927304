#pragma once

#include "command_line.h"

namespace memattach::cli {

/// Each runs one command and returns the program's exit code. Throws base::Error where the command can't be
/// carried out.
int run_profile(const ProfileCommand& command);
int run_dump(const DumpCommand& command);
int run_doctor(const DoctorCommand& command);
int run_report(const ReportCommand& command);

}  // namespace memattach::cli
