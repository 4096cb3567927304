"""What the live tests of this build ran on: prints each Python with its count of passed tests, the skips with their
reasons, and the Pythons that are missing. Runs after all other live tests. With CI=true a missing one is a failure.

    versions.py REPORT_DIRECTORY
"""

import glob
import json
import os
import sys

import harness


def main():
    ran, skipped = {}, []
    for path in sorted(glob.glob(f"{sys.argv[1]}/test_*.json")):
        if path.endswith("/test_harness.json"):
            continue  # tests the harness, not memattach
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        for name, count in report["ran"].items():
            ran[name] = ran.get(name, 0) + count
        skipped += report["skipped"]

    lines = [f"live tests on {str(python):24} {ran.get(str(python), 0):4} passed" for python in harness.pythons()]
    lines.append(f"live tests on {'no Python in particular':24} {ran.get('-', 0):4} passed")
    lines.append(f"live tests skipped: {len(skipped)}")
    lines += [f"  {test}: {why}" for test, why in skipped]
    missing = harness.missing_pythons(list(ran))
    if missing:
        lines.append(f"not tested, because not on this machine: {', '.join(missing)}")
    print("\n".join(lines))
    with open(f"{sys.argv[1]}/summary.txt", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    if missing and os.environ.get("CI") == "true":
        sys.exit("a CI run must test them")


main()
