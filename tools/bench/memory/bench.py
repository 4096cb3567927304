#!/usr/bin/env python3
"""What watching memory costs the target, and whether a leak is found. Runs a Release build of memattach against Pythons on
this machine:

    tools/bench/memory/bench.py [slowdown] [hit-cost] [leak]          # all three where none is named
        [--memattach build/release/memattach] [--python /usr/bin/python3] [--root DIRECTORY]
        [--pairs 10] [--seconds 2] [--workload NAME]… [--memray] [-- MEMATTACH OPTIONS…]

  slowdown   one process does the same work over and over; memattach (default options: CPU and memory) is attached to it
             for every second stretch of --seconds. The ratio is that of the rounds' median times, with and without.
             --memray: the same for `memray attach`, where that is installed beside --python
  hit-cost   what one breakpoint costs the target: a free(), and a malloc() that is sampled with a stack 30 deep, timed one by
             one by the program itself, often and seldom, computing in between and sleeping in between
  leak       1 MB/s kept out of 200 MB/s for 20 s: is that line the first suspect? The budget is a share of the time that the
             program runs: one that sleeps most of the time shows a few hundred of its allocations only

Intervals are 95 %, from resampling the pairs. Every figure comes from stretches that take turns, so that a machine that is
busy with other things spoils single figures but not the ratios; still, run it on an idle one. accuracy.py beside this file
says how true the figures are. --root: the Python is one inside that directory (a chroot; needs root and its /proc).
"""

import argparse
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from array import array

from memory_session import FIXTURES, TOP, Fixture, Session

WORKLOADS = {
    "objects": "small dicts and lists",
    "documents": "JSON encoded and decoded",
    "arrays": "numpy temporaries of 1.6 MB",
    "frames": "pandas read_csv and groupby",
    "blocks": "1 KB blocks, as fast as can be",
}


class Memray:
    """`memray attach` to a fixture for as long as the `with` block lasts."""

    def __init__(self, arguments, fixture):
        self.enter = ["chroot", arguments.root] if arguments.root else []
        self.fixture = fixture
        self.out = tempfile.mktemp(prefix="memray-")

    def run(self, *words):
        self.fixture.send("run 3")  # it gets in only where the program allocates
        done = subprocess.run([*self.enter, "memray", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"memray {' '.join(words)}: {done.stdout}")
        self.fixture.answer()

    def __enter__(self):
        self.run("attach", "-f", "-o", self.out, str(self.fixture.pid))
        return self

    def __exit__(self, *exc):
        self.run("detach", str(self.fixture.pid))
        for path in (self.out, f"{self.enter[1] if self.enter else ''}{self.out}"):
            if os.path.exists(path):
                os.unlink(path)


def start(arguments, *words):
    """A fixture, in the chroot that was asked for."""
    if not arguments.root:
        return Fixture(arguments.python, *words)
    directory = tempfile.mkdtemp(dir=f"{arguments.root}/tmp")
    for name in (words[0], "handshake.py"):
        shutil.copy(FIXTURES / name, directory)
    inside = directory[len(arguments.root.rstrip("/")) :]
    return Fixture(arguments.python, f"{inside}/{words[0]}", *words[1:], root=arguments.root)


def paired(arguments, fixture, tool):
    """[(rounds without, rounds with), …]; which of the two comes first changes from pair to pair."""
    pairs = []
    order = f"run {arguments.seconds}"
    fixture.order("run 0.5")
    for i in range(arguments.pairs):
        without = fixture.order(order)["rounds"] if i % 2 == 0 else None
        with tool():
            watched = fixture.order(order)["rounds"]
        pairs.append((without or fixture.order(order)["rounds"], watched))
    return pairs


def interval(pairs, figure):
    """figure(pairs) and its 95 % interval, from resampling whole pairs."""
    chance = random.Random(1)
    values = sorted(figure([chance.choice(pairs) for _ in pairs]) for _ in range(1000))
    return figure(pairs), values[25], values[974]


def medians(pairs):
    return [statistics.median([t for pair in pairs for t in pair[side]]) for side in (0, 1)]


def ratio(pairs):
    without, watched = medians(pairs)
    return watched / without


def slowdown(arguments):
    for name in arguments.workload or WORKLOADS:
        tools = {"memattach": lambda: Session(arguments.memattach, fixture.pid, *arguments.options)}
        if arguments.memray:
            tools["memray attach"] = lambda: Memray(arguments, fixture)
        for tool, make in tools.items():
            try:
                fixture = start(arguments, "rounds.py", name)
            except ValueError:  # it said nothing: a library isn't there
                print(f"slowdown   {name:10} {arguments.python} can't run it", flush=True)
                break
            with fixture:
                pairs = paired(arguments, fixture, make)
                value, low, high = interval(pairs, ratio)
                fixture.finish()
            print(f"slowdown   {name:10} {tool:13} {value:6.3f}  ({low:.3f} … {high:.3f})   {WORKLOADS[name]}", flush=True)


def hit_cost(arguments):
    """Calls that trapped, by the program's own clock: their time less what the median call takes unwatched. Some of them are
    taken twice (null traps), which is part of what they cost."""
    for where, kind, gap_us, n in (
        ("every 0.3 ms", "busy", 300, 1500),
        ("every 1 ms", "busy", 1000, 600),
        ("every 3 ms", "busy", 3000, 200),
        ("and sleeping 1 ms", "pausing", 1000, 600),
    ):
        for call, what, options in (
            ("free", "not sampled", []),
            ("malloc", "sampled, 30 deep", ["--malloc-threshold", "0.0001"]),
        ):
            with Fixture(arguments.python, "hit_times.py", kind, gap_us, 30, env={"PYTHONMALLOC": "malloc"}) as fixture:
                def times(n):
                    return array("d", bytes.fromhex(fixture.order(f"run {n}")[call]))

                alone = times(n)
                with Session(arguments.memattach, fixture.pid, "--memory", "--max-overhead", "100", *options):
                    times(200)
                    watched = times(n)
                fixture.finish()
            usual = statistics.median(alone)
            costs = sorted(1e6 * (t - usual) for t in watched if t > usual + 6e-6)
            if len(costs) < 20:
                print(f"hit cost   {what:17} {where:18} {len(costs)} calls trapped: too few to say", flush=True)
                continue
            low, middle, high = (costs[len(costs) * q // 100] for q in (10, 50, 90))
            print(
                f"hit cost   {what:17} {where:18} {middle:6.1f} µs  (80 %: {low:.1f} … {high:.1f}, mean {statistics.mean(costs):.1f},"
                f" {len(costs)} of {n} calls)",
                flush=True,
            )


def leak(arguments):
    runs = 3
    for workload, line, what in (("busy_leak", "busy-leak", "computes in between"), ("leak", "leak", "sleeps in between")):
        found = 0
        for _ in range(runs):
            with start(arguments, "memory_lines.py", workload) as fixture:
                with Session(arguments.memattach, fixture.pid, *arguments.options) as session:
                    truth = fixture.order("work 20")
                fixture.finish()
            leaks = session.profile["leaks"]
            number = fixture.truth["lines"][line]
            found += bool(leaks) and leaks[0]["line"] == number
            said = "no suspect"
            if leaks:
                said = (
                    f"line {leaks[0]['line']} grows {leaks[0]['growth_bytes_per_min'] / 1e6:.0f} MB/min"
                    f" ± {leaks[0]['growth_ci95'] / 1e6:.0f}, confidence {100 * leaks[0]['confidence']:.0f} %"
                )
            wanted = 60 * truth["bytes"][line] / truth["seconds"] / 1e6
            print(f"leak       {said}; truth: line {number}, {wanted:.0f} MB/min", flush=True)
        print(f"leak       the first suspect in {found} of {runs} runs of a program that {what}", flush=True)


def main():
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"slowdown": slowdown, "hit-cost": hit_cost, "leak": leak}
    parser.add_argument("part", nargs="*")
    parser.add_argument("--memattach", default=str(TOP / "build/release/memattach"))
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--root")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS))
    parser.add_argument("--memray", action="store_true")
    arguments = parser.parse_args(own)
    arguments.options = options
    for part in arguments.part or parts:
        if part not in parts:
            parser.error(f"{part} is none of {', '.join(parts)}")
        parts[part](arguments)


if __name__ == "__main__":
    main()
