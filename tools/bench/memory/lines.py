#!/usr/bin/env python3
"""How true the bytes of each line are, of programs that don't know that they are watched.

    tools/bench/memory/lines.py [--memattach build/release/memattach] [--python /usr/bin/python3.11] [--seconds 10] [--runs 1]
                                [PROGRAM]…

The programs in programs/ do the same over and over. How much each of their lines asks for in one round is counted first, in a
run of its own (count_lines.c, preloaded; it knows CPython 3.11's frames, so that --python must be a 3.11 with its headers).
Then memattach watches, without more, for --seconds, and its figures are compared with the counts times the rounds. Told are:
each line with at least 8 % of the bytes, whether its count was within its ±, and how many bytes there were in all.
"""

import argparse
import collections
import math
import mmap
import os
import pathlib
import statistics
import struct
import subprocess
import tempfile
import time

from memory_session import TOP, Session, rows

HERE = pathlib.Path(__file__).resolve().parent
LARGE = 0.08


def build_counter(python, directory):
    include = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    library = directory / "count_lines.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", f"-I{include}", "-o", library, HERE / "count_lines.c"], check=True)
    return library


def count(python, counter, program, directory):
    """Bytes a round, by line of the program; repeat.py asks for next to nothing."""
    out = directory / "counts"
    environment = dict(os.environ, COUNTS=str(out), LD_PRELOAD=str(counter), PYTHONMALLOC="malloc")
    subprocess.run([python, program], check=True, env=environment)
    counts = collections.defaultdict(float)
    for line in out.read_text().splitlines():
        place, amount = line.rsplit(" ", 1)
        path, number = place.rsplit(":", 1)
        if path == str(program):
            counts[int(number)] += float(amount)
    return counts


def read_rounds(shared):
    """Twice the same: it may be read while it is written."""
    before, now = None, struct.unpack_from("d", shared)[0]
    while now != before:
        before, now = now, struct.unpack_from("d", shared)[0]
    return now


def watch(arguments, program, directory):
    """What memattach says, and how many rounds there were meanwhile."""
    rounds_file = directory / "rounds"
    environment = dict(os.environ, ROUNDS=str(rounds_file))
    with subprocess.Popen([arguments.python, program], stdout=subprocess.PIPE, env=environment) as target:
        try:
            target.stdout.readline()
            with open(rounds_file, "r+b") as file:
                shared = mmap.mmap(file.fileno(), 0)
            with Session(arguments.memattach, target.pid) as session:
                before = read_rounds(shared)
                time.sleep(arguments.seconds)
                rounds = read_rounds(shared) - before
            return session.profile, rounds
        finally:
            target.kill()


def compare(profile, program, counts, rounds, results):
    have = rows(profile, str(program))
    whole = sum(counts.values()) * rounds
    ratio = profile["totals"]["alloc_bytes"] / whole
    results["ratios"].append(ratio)
    print(f"  in all {whole / 1e6:9.0f} MB, said {ratio:5.2f} of it")
    for line, amount in sorted(counts.items(), key=lambda item: -item[1]):
        true = amount * rounds
        if true < LARGE * whole:
            break
        row = have.get(line, {})
        said, half = row.get("alloc_bytes") or 0.0, row.get("alloc_ci95") or 0.0
        results["inside"].append(abs(said - true) <= half)
        results["half"].append(half / said if said else math.inf)
        print(f"  line {line:3} {true / 1e6:9.0f} MB ({100 * true / whole:4.1f} %), said {said / true:5.2f} of it"
              f" ± {half / true:4.2f}{'' if results['inside'][-1] else '   outside'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="*", default=sorted(p.stem for p in (HERE / "programs").glob("*.py") if p.stem != "repeat"))
    parser.add_argument("--memattach", default=str(TOP / "build/release/memattach"))
    parser.add_argument("--python", default="/usr/bin/python3.11")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    for program in arguments.program:
        if not (HERE / "programs" / f"{program}.py").exists():
            parser.error(f"there is no {HERE / 'programs' / program}.py")
    results = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        counter = build_counter(arguments.python, directory)
        for program in arguments.program:
            path = HERE / "programs" / f"{program}.py"
            counts = count(arguments.python, counter, path, directory)
            for _ in range(arguments.runs):
                print(program, flush=True)
                profile, rounds = watch(arguments, path, directory)
                compare(profile, path, counts, rounds, results)
    ratios = sorted(results["ratios"])
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"of {len(ratios)} sessions: {ratios[0]:.2f} … {ratios[-1]:.2f} of the bytes, half of them {quartiles[0]:.2f} … {quartiles[2]:.2f}; "
          f"{sum(results['inside'])} of {len(results['inside'])} lines within their ±, its median {100 * statistics.median(results['half']):.0f} %")


if __name__ == "__main__":
    main()
