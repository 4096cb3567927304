#!/usr/bin/env python3
"""What sampling CPU stacks costs, as ratios. Runs a Release build of memattach against Pythons on this machine:

    tools/bench/cpu/bench.py [FIGURE…] [--memattach build/release/memattach] [--python /usr/bin/python3] [--minutes 1]

    walk      reading a 30-deep stack once, and how many small reads that is worth (needs bench_walk)   a few seconds
    cost      own CPU time for each sample of a 30-deep stack, at 100 to 200,000 Hz                     half a minute
    rate      how many of the asked samples are taken, and how many of them are torn                    half a minute
    slowdown  what the target loses at 100 and 1,000 Hz, watched and unwatched turn by turn             a minute
    threads   share of a core that 200 threads at 100 Hz take                                           ten seconds
    attach    from memattach's start to when it has begun to sample, for each CPython found             ten seconds
    memory    resident size after --minutes at 1,000 Hz on a program with 5,000 distinct stacks         --minutes

Without FIGURE: all of them. One line for each figure. Figures come from runs that take turns with their counterpart, so
that a machine that is busy with other things spoils single ones but not the ratios; still, run it on an idle one. Figures
of two machines don't compare.
"""

import argparse
import glob
import json
import math
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

    def walk(self):
        """What is left of a sample's cost without waking up for it."""
        tool = pathlib.Path(self.binary).parent / "tools/bench/cpu/bench_walk"
        if not tool.exists():
            print(f"walk      no figure: {tool} isn't built")
            return
        with Target(self.options.python, DEEP) as target:
            out = subprocess.check_output([tool, str(target.pid), "2"], text=True)
        time_us = next(line for line in out.splitlines() if line.startswith("walk,")).split()[3]
        read_us = next(line for line in out.splitlines() if line.startswith("one 8-byte read")).split()[3]
        print(f"walk      {time_us} µs for a 30-deep stack, {float(time_us) / float(read_us):.1f} times one small read ({read_us} µs)")

    def cost(self):
        """A long run minus a short one. Beside it what it costs on this machine to sleep and be woken, with nothing done:
        where samples are that far apart, one can't cost less."""
        for rate in (100, 1000, 10000, 20000, 100000, 200000):
            longer = 4 if rate == 100 else 2
            with Target(self.options.python, DEEP) as target:
                figures = []
                for _ in range(3):
                    short, long = self.run(target.pid, 0.5, rate), self.run(target.pid, longer, rate)
                    if long.samples > short.samples:
                        figures.append((long.own_cpu_s - short.own_cpu_s) / (long.samples - short.samples) * 1e6)
            if not figures:
                print(f"cost      {rate:6} Hz: no figure, the machine is too busy")
                continue
            cost = statistics.median(figures)
            line = f"cost      {rate:6} Hz: {cost:6.1f} µs of own CPU time a sample"
            if rate > 2000:
                print(f"{line} (waits for the next one without sleeping)")
            else:
                wake = self.empty_wake_us(rate)
                print(f"{line}, {cost / wake:.1f} times an empty wake-up ({wake:.1f} µs)")

    @staticmethod
    def empty_wake_us(rate):
        rounds = max(rate // 2, 100)
        before = time.process_time()
        for _ in range(rounds):
            time.sleep(1 / rate)
        return (time.process_time() - before) / rounds * 1e6

    def rate(self):
        for rate in (100, 1000, 10000, 20000, 100000):
            with Target(self.options.python, DEEP) as target:
                runs = [self.run(target.pid, 1.5, rate) for _ in range(3)]
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
                for turn in range(24):
                    watched = turn % 2 == 1
                    child = None
                    if watched:
                        child = subprocess.Popen(
                            [self.binary, "-p", str(target.pid), "-d", "1.2", "-r", str(rate), "--cpu", "-q", "--json", "/dev/null"]
                        )
                    # The first reports of a turn may belong to the one before, or to attaching.
                    reports = [float(target.process.stdout.readline()) for _ in range(10)]
                    speed[watched].append(statistics.median(reports[3:]))
                    if child:
                        child.wait()
                        target.process.stdout.readline()
                logs = [math.log(a / b) for a, b in zip(speed[False], speed[True])]
                mean, error = statistics.mean(logs), 1.96 * statistics.stdev(logs) / len(logs) ** 0.5
                low, high, spread = math.exp(mean - error), math.exp(mean + error), max(speed[False]) / min(speed[False])
                print(
                    f"slowdown  {rate:6} Hz: {math.exp(mean):.4f} (95 %: {low:.4f} to {high:.4f}, {len(logs)} pairs; "
                    f"seconds without memattach differ by up to {spread:.3f})"
                )

    def threads(self):
        with Target(self.options.python, THREADS) as target:
            for options in ((), ("--idle",)):
                run = self.run(target.pid, 4, 100, *options)
                base = self.run(target.pid, 0.2, 100, *options)
                share = 100 * (run.own_cpu_s - base.own_cpu_s) / (run.wall_s - base.wall_s)
                print(f"threads   200 at 100 Hz {' '.join(options):6}: {share:5.1f} % of one core")

    def attach(self):
        """Until memattach says that it has begun; the first sample is due a period later."""
        pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
        pythons = glob.glob(f"{pyenv}/versions/3.*/bin/python") + glob.glob("/usr/bin/python3.[0-9]*[0-9]")
        for python in sorted(pythons, key=lambda p: [int(n) for n in self.version(p).split(".")]):
            if int(self.version(python).split(".")[1]) < 8:
                continue
            with Target(python, DEEP) as target, tempfile.TemporaryDirectory() as directory:
                taken = {}
                for turn in range(8):
                    cache = f"{directory}/{turn if turn % 2 == 0 else 'kept'}"
                    env = {**os.environ, "XDG_CACHE_HOME": cache}
                    os.makedirs(cache, exist_ok=True)
                    start = time.perf_counter()
                    command = [self.binary, "-p", str(target.pid), "-d", "0.05", "--cpu", "--json", f"{directory}/out.json"]
                    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
                    assert "profiling" in child.stderr.readline()
                    if turn != 1:
                        taken.setdefault(turn % 2 == 0, []).append((time.perf_counter() - start) * 1000)
                    child.stderr.read()
                    child.wait()
                doctor = subprocess.check_output([self.binary, "doctor", "-p", str(target.pid)], text=True)
                source = next(l.split("  ")[-1].strip() for l in doctor.splitlines() if "offsets from" in l)
                print(
                    f"attach    {self.version(python):7} {statistics.median(taken[True]):5.1f} ms with an empty cache, "
                    f"{statistics.median(taken[False]):5.1f} ms later ({python}, offsets from {source})"
                )

    @staticmethod
    def version(python):
        return subprocess.run([python, "-V"], capture_output=True, text=True).stdout.split()[1]

    def memory(self):
        with Target(self.options.python, STACKS) as target:
            run = self.run(target.pid, self.options.minutes * 60, 1000)
            stacks = len(run.profile["stacks"])
            print(f"memory    {run.rss_mb:5.1f} MB resident after {self.options.minutes} min at 1000 Hz, {stacks} distinct stacks")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memattach", default=str(TOP / "build/release/memattach"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=1, help="how long `memory` runs (10 for the figure that counts)")
    names = ["walk", "cost", "rate", "slowdown", "threads", "attach", "memory"]
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(names) + "; default: all")
    options = parser.parse_args()
    for name in set(options.figures) - set(names):
        parser.error(f"no figure {name}; there are {', '.join(names)}")
    version = subprocess.run([options.python, "-V"], capture_output=True, text=True).stdout.strip()
    print(f"{version} ({options.python}), {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    bench = Bench(options)
    for name in options.figures or names:
        getattr(bench, name)()
        sys.stdout.flush()


main()
