"""Programs of the kind that one profiles for their memory, before and after they were put right: the profile names the
lines that hold the memory, in the right order, and the truth lies in the intervals that it states.

Truth is what a round asks for by construction ("round"), and what tracemalloc said a round keeps at the place where the
program is stopped while memattach leaves ("kept")."""
# serial

import signal
import sys

from harness import MEMATTACH, LiveTest, each_python, main


class Seed(LiveTest):
    # These allocate millions of blocks a second: a large budget, so that a second is enough to see something.
    ARGS = ["--memory", "--max-overhead", "60"]

    def measure(self, python, program, variant):
        if program in ("frames", "csv_processor") and not self.has_pandas(python):
            self.skipTest(f"{python} has no pandas")
        target = self.start(python, f"seed/{program}.py", variant)
        running = self.memattach_start("-p", target.pid, *self.ARGS, "--json", "-")
        running.wait_attached()
        target.send("work 1")
        done = target.read_json()
        rounds = done["rounds"] + 1
        target.send("hold")
        target.read_json()
        running.signal(signal.SIGINT)
        run = running.wait()
        target.send("go on")
        self.assertEqual(run.code, 128 + signal.SIGINT, f"\n{run}")
        profile = run.json
        self.assertTrue(profile["session"]["text_verified"])
        # Windows are put in proportion by the target's processor time, which others on the machine stretch.
        if done["cpu_seconds"] > 0.85 * done["seconds"]:
            self.check_truth(target, profile, rounds)
        return target, profile

    _pandas = {}

    def has_pandas(self, python):
        if str(python) not in self._pandas:
            target = self.start_command([python.path, "-c", "import pandas"], python=python)
            self._pandas[str(python)] = target.process.wait(60) == 0
        return self._pandas[str(python)]

    def check_truth(self, target, profile, rounds):
        """A 95 % interval misses now and then, three times as wide a one hardly ever. What is allowed beyond is what the truth
        leaves out: free lists, numbers that become objects, the file's buffers."""

        def check(what, name, value, half_width, wanted, most=None):
            text = f"{what} of {name}: {value:.0f} ± {half_width:.0f}, not {wanted}\n{profile['session']}"
            self.assertGreaterEqual(value, 0.65 * wanted - 3 * half_width - 20_000, text)
            self.assertLessEqual(value, 1.35 * max(wanted, most or 0) + 3 * half_width + 20_000, text)

        for name, wanted in target.truth["round"].items():
            row = self.find_line(profile, target.source, target.lines[name]) or {"alloc_bytes": 0, "alloc_ci95": 0}
            seen = row["alloc_bytes"] > 0  # what no window met has no row; that is said in the notes
            if seen or not profile["session"]["notes"]:
                most = target.truth.get("most", {}).get(name, 0) * rounds
                check("allocated bytes", name, row["alloc_bytes"], row["alloc_ci95"], wanted * rounds, most)
        for name, wanted in target.truth.get("kept", {}).items():
            row = self.find_line(profile, target.source, target.lines[name])
            if row and wanted > 1_000_000:
                check("live bytes", name, row["live_bytes"], row["live_ci95"], wanted)

    def assert_named(self, target, profile, *names):
        """These lines are where the memory comes from."""
        rows = [self.find_line(profile, target.source, target.lines[name]) for name in names]
        share = sum(row["memory_pct"] for row in rows if row)
        # A share has an interval: of what the other lines have, so much may be by chance. Where stops are dear a second has a
        # handful of windows, and the profile says that it knows next to nothing.
        shares = [(f["path"], r["line"], r["memory_pct"], r["memory_ci95"]) for f in profile["files"] for r in f["lines"]]
        others = [r["memory_ci95"] for f in profile["files"] for r in f["lines"] if r not in rows]
        self.assertGreater(share, max(40, 80 - max(others, default=0)), shares)
        places = [(h["path"], h["line"]) for h in profile["hotspots"]]
        for path, line in places:
            self.assertIn((path, line), [(target.source, target.lines[name]) for name in target.lines])

    def assert_advice(self, target, profile, name, word):
        """Where the line is a hotspot at all: that depends on how sure the profile is."""
        for spot in profile["hotspots"]:
            if (spot["path"], spot["line"], spot["metric"]) == (target.source, target.lines[name], "memory"):
                self.assertIn(word, spot["advice"] or "")

    def assert_order(self, target, profile, *names, figure="alloc_bytes", interval="alloc_ci95"):
        """From the most to the least, as far as the profile claims to know."""
        rows = [self.find_line(profile, target.source, target.lines[name]) for name in names]
        rows = [row for row in rows if row]  # what no window met has none
        self.assertTrue(rows)
        for first, second in zip(rows, rows[1:]):
            most = first[figure] + 1.5 * first[interval]
            least = second[figure] - 1.5 * second[interval]
            self.assertGreaterEqual(most, least, f"line {second['line']} before {first['line']}: {second} {first}")

    @each_python(kinds=("system",))
    def test_records_in_lists(self, python):
        target, profile = self.measure(python, "records", "before")
        self.assert_named(target, profile, "transform", "result", "kept", "ordered")
        # The comprehension is the hot spot with what it calls, the copies come behind it.
        self.assert_order(
            target, profile, "result", "kept", "ordered", figure="alloc_total_bytes", interval="alloc_total_ci95"
        )

    @each_python(kinds=("system",))
    def test_records_in_a_stream(self, python):
        target, profile = self.measure(python, "records", "after")
        self.assert_named(target, profile, "transform", "stream")

    @each_python(kinds=("system",))
    def test_json_lines_read_whole(self, python):
        target, profile = self.measure(python, "json_lines", "before")
        self.assert_named(target, profile, "readlines", "documents")
        self.assert_advice(target, profile, "readlines", "readlines()")
        self.assert_advice(target, profile, "documents", "generator")

    @each_python(kinds=("system",))
    def test_json_lines_one_by_one(self, python):
        target, profile = self.measure(python, "json_lines", "after")
        self.assert_named(target, profile, "each", "document")

    @each_python(kinds=("system",))
    def test_strings_added(self, python):
        target, profile = self.measure(python, "strings", "before")
        self.assert_named(target, profile, "add")

    @each_python(kinds=("system",))
    def test_strings_buffered(self, python):
        target, profile = self.measure(python, "strings", "stringio")
        self.assert_named(target, profile, "write", "getvalue")

    @each_python(kinds=("system",))
    def test_strings_yielded(self, python):
        target, profile = self.measure(python, "strings", "after")
        self.assert_named(target, profile, "yield")

    @each_python(kinds=("system",))
    def test_data_frame_read_whole(self, python):
        target, profile = self.measure(python, "frames", "before")
        self.assert_named(target, profile, "read", "column", "filter", "group")
        self.assert_order(target, profile, "read", "filter", "column")
        self.assert_advice(target, profile, "read", "chunksize")

    @each_python(kinds=("system",))
    def test_data_frame_by_chunks(self, python):
        target, profile = self.measure(python, "frames", "after")
        self.assert_named(target, profile, "chunk", "chunk-column", "chunk-filter", "chunk-group")
        self.assert_order(target, profile, "chunk", "chunk-filter")

    @each_python(kinds=("system",))
    def test_csv_read_whole(self, python):
        target, profile = self.measure(python, "csv_processor", "before")
        self.assert_named(target, profile, "read", "total", "large", "sums")
        self.assert_order(target, profile, "read", "large", "total")

    @each_python(kinds=("system",))
    def test_csv_by_chunks(self, python):
        target, profile = self.measure(python, "csv_processor", "after")
        self.assert_named(target, profile, "chunk", "chunk-total", "chunk-large", "chunk-groups")
        self.assert_order(target, profile, "chunk", "chunk-large")

    def test_as_a_started_command(self):
        """memattach passes the command's standard streams through: the fixture is spoken to as if it were alone."""
        out = f"{self.directory()}/profile.json"
        program = f"{self.directory()}/records.py"
        for name in ("seed/records.py", "handshake.py"):
            self.copy_fixture(name, program.rpartition("/")[0])
        target = self.start_command(
            [MEMATTACH, *self.ARGS, "--json", out, "-q", "--", sys.executable, program, "before"], ready=True, expect=0
        )
        target.source = program
        target.send("work 1")
        self.assertGreater(target.read_json()["rounds"], 0)
        self.assertTrue(target.finish()["ok"])
        self.assertEqual(target.code, 0, target.errors())
        profile = self.read_profile(out)
        # From its first line on: what it makes before it says that it is ready is part of it.
        self.assert_named(target, profile, "records", "transform", "result", "kept", "ordered")


if __name__ == "__main__":
    main()
