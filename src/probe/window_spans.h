#pragma once

#include <vector>

#include "memattach/trace/events.h"

namespace memattach::probe {

/// Windows of one kind that came one after the other share what they stand for; its sum stays the same. They
/// come back in the order in which they ended.
///
/// How long a window's span is depends on what the windows before it have cost, and may be ten times as long
/// as the next one's: samples of the one would stand for ten times as much, and figures would hang on a few
/// of them. What the program does in a window doesn't know of that, so that windows of about one length share
/// their spans between them. A window's length may well have to do with what the program does: one that was
/// cut short stands for a span of its own. Not for all of it where it was very short: a large block that
/// happened to be in a window of 3 µs would stand for gigabytes.
void share_spans(std::vector<trace::Window>& windows);

}  // namespace memattach::probe
