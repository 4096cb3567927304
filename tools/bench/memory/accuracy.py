#!/usr/bin/env python3
"""How true the memory figures are: fixtures/memory_lines.py knows what each of its lines asked for; memattach estimates it.

    tools/bench/memory/accuracy.py [--memattach build/release/memattach] [--runs 10] [--seconds 10]
                                   [--python PATH]… [--workload NAME]… [--json FILE]

For every workload and Python, of all runs and lines:
  inside    share of the runs in which a line with over 5 % of the bytes was within its own 95 % interval (wanted: ≥ 90 %)
  ±         the interval's half width of the largest line, in per cent of its estimate (wanted: ≤ 15 %)
  ratio     estimate / truth per line, mean over the runs
  order     share of the runs in which lines that differ by over 20 % came in the true order
  leak      (workload leak) share of the runs in which the leaking line was the first suspect
"""

import argparse
import json
import pathlib
import statistics
import sys

from memory_session import TOP, Fixture, Session, rows

WORKLOADS = ["slow", "tiny", "blocks", "mixed", "bursts", "threads", "leak"]


def one_run(arguments, python, workload, options):
    with Fixture(python, "memory_lines.py", workload) as fixture:
        with Session(arguments.memattach, fixture.pid, "--memory", *options) as session:
            truth = fixture.order(f"work {arguments.seconds}")
        fixture.finish()
        return fixture, truth, session.profile


def compare(fixture, truth, profile, out):
    total = sum(truth["bytes"].values())
    have = rows(profile, fixture.path)
    shares = {}
    for name, wanted in truth["bytes"].items():
        row = have.get(fixture.truth["lines"][name])
        estimate = (row or {}).get("alloc_bytes") or 0.0
        half = (row or {}).get("alloc_ci95") or 0.0
        shares[name] = (wanted, estimate)
        line = out["lines"].setdefault(name, {"ratio": [], "half_pct": [], "share": wanted / total, "inside": []})
        line["ratio"].append(estimate / wanted)
        line["half_pct"].append(100 * half / estimate if estimate else 100.0)
        if wanted > 0.05 * total:
            inside = abs(estimate - wanted) <= half
            line["inside"].append(inside)
            out["inside"].append(inside)
    pairs = [(a, b) for a in shares.values() for b in shares.values() if a[0] > 1.2 * b[0]]
    out["order"].append(all(a[1] > b[1] for a, b in pairs))
    if "leak" in truth["bytes"]:
        leaks = profile.get("leaks") or []
        first = bool(leaks) and leaks[0]["line"] == fixture.truth["lines"]["leak"]
        out["leak"].append(first)
    session = profile["session"]
    out["overhead_pct"].append(session.get("overhead_pct") or 0.0)
    out["coverage"].append((session.get("coverage_malloc"), session.get("coverage_object")))


def show(workload, python, out):
    lines = "  ".join(
        f"{name} {statistics.mean(line['ratio']):.3f}±{statistics.pstdev(line['ratio']):.3f}"
        f" (ci {statistics.mean(line['half_pct']):.0f}%)"
        for name, line in out["lines"].items()
    )
    inside = 100 * statistics.mean(out["inside"])
    largest = max(out["lines"].values(), key=lambda line: line["share"])
    print(
        f"{workload:12} {python:34} inside {inside:3.0f}%  ±{statistics.mean(largest['half_pct']):.0f}%"
        f"  order {100 * statistics.mean(out['order']):.0f}%  overhead {statistics.mean(out['overhead_pct']):.1f}%"
        + (f"  leak {100 * statistics.mean(out['leak']):.0f}%" if out["leak"] else "")
        + f"  {lines}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memattach", default=str(TOP / "build/release/memattach"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--python", action="append")
    parser.add_argument("--workload", action="append")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("options", nargs="*", help="options for memattach, after --")
    arguments = parser.parse_args()
    pythons = arguments.python
    if not pythons:
        import harness

        pythons = [p.path for p in harness.pythons(kinds=("host",))]
    results = {}
    for workload in arguments.workload or WORKLOADS:
        for python in pythons:
            out = {"lines": {}, "inside": [], "order": [], "leak": [], "overhead_pct": [], "coverage": []}
            for _ in range(arguments.runs):
                compare(*one_run(arguments, python, workload, arguments.options), out)
            show(workload, python, out)
            results[f"{workload} {python}"] = out
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    poor = [key for key, out in results.items() if statistics.mean(out["inside"]) < 0.9]
    sys.exit(f"fewer than 90 % inside their interval: {', '.join(poor)}" if poor else 0)


if __name__ == "__main__":
    main()
