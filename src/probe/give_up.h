#pragma once

#include "memattach/probe/shadow.h"

namespace memattach::probe {

/// A process of real-time priority that doesn't stop would take a processor away from everybody else: one
/// that hasn't slept for seconds ends (RLIMIT_RTTIME, setrlimit(2)), and so does one for whose pages there is
/// no memory left (SIGBUS). Its shadow goes with it.
void give_up_in_time(ShadowShared& shared);

}  // namespace memattach::probe
