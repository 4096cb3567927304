#!/usr/bin/env python3
"""What sampling CPU stacks costs, as ratios. Runs a Release build of memattach against Pythons on this machine:

    tools/bench/cpu/bench.py [--memattach build/release/memattach] [--python /usr/bin/python3] [--only NAME…] [--minutes 1]

Every figure comes from runs that take turns with their counterpart, so that a machine that is busy with other things
spoils single figures but not the ratios; still, run it on an idle one. Figures of two machines don't compare.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[3]

DEEP = """
import sys, time
def burn():
    total = 0
    for i in range(20000):
        total += i & 3
    return total
def rec(n):
    if n:
        return rec(n - 1)
    while True:
        start = time.perf_counter()
        rounds = 0
        while time.perf_counter() - start < 0.1:
            burn()
            rounds += 1
        if report:
            print(rounds / (time.perf_counter() - start), flush=True)
report = len(sys.argv) > 1
print("ready", flush=True)
rec(27)
"""

THREADS = """
import threading, time
def work(n):
    while True:
        time.sleep(0.1)
        sum(range(5000))
for i in range(200):
    threading.Thread(target=work, args=(i,), daemon=True).start()
print("ready", flush=True)
time.sleep(1e6)
"""

STACKS = """
import itertools
functions = []
for i in range(5000):
    scope = {}
    exec(compile(f"def f{i}(g, n):\\n    return g() if n == 0 else h(n)\\n", f"/app/module{i % 50}.py", "exec"), scope)
    functions.append(scope[f"f{i}"])
def leaf():
    return sum(range(300))
print("ready", flush=True)
for f in itertools.cycle(functions):
    f(leaf, 0)
"""


class Target:
    def __init__(self, python, source, *args):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".py")
        self.file.write(source)
        self.file.flush()
        self.process = subprocess.Popen([python, self.file.name, *args], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.file.close()

    @property
    def pid(self):
        return self.process.pid


class Profiled:
    """One run of memattach: its profile, its own CPU time and its largest resident size."""

    def __init__(self, binary, pid, duration, rate, *options):
        out = tempfile.TemporaryFile("w+")
        start = time.perf_counter()
        command = [binary, "-p", str(pid), "-d", str(duration), "-r", str(rate), "--cpu", "--json", "-", "-q", *options]
        child = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.wall_s = time.perf_counter() - start
        if child.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {child.returncode}")
        out.seek(0)
        self.profile = json.load(out)
        out.close()
        self.own_cpu_s = used.ru_utime + used.ru_stime
        self.rss_mb = used.ru_maxrss / 1024
        self.samples = self.profile["totals"]["cpu_samples"]
        self.loss = self.profile["session"]["loss"]


class Bench:
    def __init__(self, options):
        self.options = options
        self.binary = options.memattach

    def run(self, pid, duration, rate, *options):
        return Profiled(self.binary, pid, duration, rate, *options)

    def cost(self):
        """Own CPU time for each sample of a 30-deep stack: a long run minus a short one. Beside it what it costs on this
        machine to sleep and be woken, with nothing done: up to 2,000 Hz a sample can't cost less."""
        for rate in (100, 1000, 2000, 20000):
            with Target(self.options.python, DEEP) as target:
                figures = []
                for _ in range(3):
                    short, long = self.run(target.pid, 0.5, rate), self.run(target.pid, 2, rate)
                    if long.samples > short.samples:
                        figures.append((long.own_cpu_s - short.own_cpu_s) / (long.samples - short.samples) * 1e6)
                cost = statistics.median(figures)
                if rate > 2000:
                    print(f"cost      {rate:6} Hz: {cost:6.1f} µs of own CPU time a sample (spins between samples)")
                else:
                    wake = self.empty_wake_us(rate)
                    print(
                        f"cost      {rate:6} Hz: {cost:6.1f} µs of own CPU time a sample, "
                        f"{cost / wake:.1f} times an empty wake-up ({wake:.1f} µs)"
                    )

    @staticmethod
    def empty_wake_us(rate):
        rounds = max(rate // 2, 100)
        before = time.process_time()
        for _ in range(rounds):
            time.sleep(1 / rate)
        return (time.process_time() - before) / rounds * 1e6

    def rate(self):
        for rate in (1000, 20000, 100000):
            with Target(self.options.python, DEEP) as target:
                runs = [self.run(target.pid, 2, rate) for _ in range(3)]
                best = max(runs, key=lambda r: r.samples)
                asked = rate * best.profile["totals"]["cpu_s"]
                wall = rate * best.profile["session"]["duration_s"]
                torn = best.loss.get("torn_stacks", 0) / max(best.samples, 1)
                print(
                    f"rate      {rate:6} Hz: {best.samples / best.profile['session']['duration_s']:8.0f} samples/s, "
                    f"{best.samples / asked:.3f} of those due in the target's CPU time "
                    f"({best.samples / wall:.3f} of wall time), torn {torn:.4%}"
                )

    def slowdown(self):
        for rate in (100, 1000):
            with Target(self.options.python, DEEP, "report") as target:
                speed = {False: [], True: []}
                for turn in range(16):
                    watched = turn % 2 == 1
                    child = None
                    if watched:
                        child = subprocess.Popen(
                            [self.binary, "-p", str(target.pid), "-d", "1.2", "-r", str(rate), "--cpu", "-q", "--json", "/dev/null"],
                        )
                    # The first reports of a turn may belong to the one before, or to attaching.
                    reports = [float(target.process.stdout.readline()) for _ in range(10)]
                    speed[watched].append(statistics.median(reports[3:]))
                    if child:
                        child.wait()
                        target.process.stdout.readline()
                ratios = [a / b for a, b in zip(speed[False], speed[True])]
                print(
                    f"slowdown  {rate:6} Hz: {statistics.median(ratios):.4f} (pairs from {min(ratios):.3f} to {max(ratios):.3f}; "
                    f"spread without memattach {max(speed[False]) / min(speed[False]):.3f})"
                )

    def threads(self):
        with Target(self.options.python, THREADS) as target:
            for options in ((), ("--idle",)):
                run = self.run(target.pid, 4, 100, *options)
                base = self.run(target.pid, 0.2, 100, *options)
                share = 100 * (run.own_cpu_s - base.own_cpu_s) / (run.wall_s - base.wall_s)
                print(f"threads   200 at 100 Hz {' '.join(options):6}: {share:5.1f} % of one core")

    def attach(self):
        with Target(self.options.python, DEEP) as target:
            walls = []
            for _ in range(7):
                run = self.run(target.pid, 0.1, 1000)
                walls.append((run.wall_s - run.profile["session"]["duration_s"]) * 1000)
            print(f"attach    start, attach and write, without the session itself: {statistics.median(walls):5.1f} ms")

    def memory(self):
        with Target(self.options.python, STACKS) as target:
            run = self.run(target.pid, self.options.minutes * 60, 1000)
            stacks = len(run.profile["stacks"])
            print(f"memory    {run.rss_mb:5.1f} MB resident after {self.options.minutes} min at 1000 Hz, {stacks} distinct stacks")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memattach", default=str(TOP / "build/release/memattach"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=1)
    names = ["cost", "rate", "slowdown", "threads", "attach", "memory"]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    options = parser.parse_args()
    version = subprocess.run([options.python, "-V"], capture_output=True, text=True).stdout.strip()
    print(f"{version} ({options.python}), {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    bench = Bench(options)
    for name in options.only:
        getattr(bench, name)()


main()
