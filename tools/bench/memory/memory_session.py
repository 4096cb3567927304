"""What the memory benchmarks share: a fixture that works on order, and memattach looking at exactly that work."""

import json
import os
import pathlib
import signal
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parents[3]
FIXTURES = TOP / "fixtures"
sys.path.insert(0, str(TOP / "tests/live"))


class Fixture:
    """A program of fixtures/ that speaks through handshake.py."""

    def __init__(self, python, name, *args, env=None, root=None):
        """`name`: of a file in fixtures/, or a path inside `root` (a chroot)."""
        self.path = name if root else str(FIXTURES / name)
        self.process = subprocess.Popen(
            [*(["chroot", root] if root else []), python, self.path, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(FIXTURES), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        )
        self.truth = json.loads(self.process.stdout.readline())
        assert self.process.stdout.readline() == "ready\n"

    pid = property(lambda self: self.process.pid)

    def order(self, text):
        self.send(text)
        return self.answer()

    def send(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def finish(self):
        """Ends it; raises where it doesn't come to its right result."""
        self.process.stdin.write("finish\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        if self.process.wait(30) != 0 or not result["ok"]:
            raise AssertionError(f"fixture {self.path} was harmed: {result}, exit code {self.process.returncode}")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Session:
    """memattach attached to a process for as long as the `with` block lasts; then `profile`."""

    def __init__(self, memattach, pid, *options):
        # A shell's background job has SIGINT ignored, and what it starts would too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.command = [memattach, "-p", str(pid), "--json", "-", *options]
        self.profile = None

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            if line.startswith("memattach: profiling"):
                return self
        self.process.wait()
        raise AssertionError(f"memattach did not attach: {''.join(seen)}")

    def __exit__(self, kind, *exc):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=120)
        if kind is None:
            if self.process.returncode != 128 + signal.SIGINT:
                raise AssertionError(f"memattach ended with {self.process.returncode}: {err}")
            self.profile = json.loads(out)


def rows(profile, path):
    """{line number: row} of one file."""
    for file in profile["files"]:
        if file["path"] == path:
            return {row["line"]: row for row in file["lines"]}
    return {}
