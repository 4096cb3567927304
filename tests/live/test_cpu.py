"""Where CPU time goes, compared with what the targets themselves know: shares, the Python/native/system split, threads,
the GIL and child processes. (How a profile ends: test_endings.py.)"""

# timeout: 900

import os
import pathlib
import sys

from harness import LiveTest, each_python, main, pythons

RATE = ("-r", "500", "--cpu")
WITHOUT_PERF = (sys.executable, str(pathlib.Path(__file__).with_name("without_call.py")), "298")  # perf_event_open, x86-64


class Shares(LiveTest):
    def assert_share(self, row, expected_pct, message=""):
        """Within the profile's own confidence interval (twice it: these are many rows in many versions), but five points
        of slack for what the interval can't know: the moments between a sample's clock and its stack."""
        self.assertAlmostEqual(row["cpu_pct"], expected_pct, delta=2 * row["cpu_ci95"] + 5, msg=message)

    @each_python()
    def test_two_lines(self, python):
        target = self.start(python, "cpu_shares.py", "3")
        profile = self.profile(target, "-d", "2s", *RATE)
        self.assertGreater(profile["totals"]["cpu_samples"], 20)
        for name in ("heavy", "light"):
            self.assertGreater(self.line(profile, target, name)["cpu_samples"], 0)
        # The loops' own lines burn as well: compare the functions.
        for function in profile["functions"]:
            if function["path"] == target.source and function["name"] in target.truth["shares"]:
                self.assert_share(function, 100 * target.truth["shares"][function["name"]], str(profile["functions"]))

    @each_python()
    def test_modes(self, python):
        """By events alone, and with ticks between them."""
        target = self.start(python, "cpu_modes.py")
        profiles = [self.profile(target, "-d", *which, "--cpu") for which in (("2s", "-r", "200"), ("4s", "-r", "500"))]
        spent = target.finish()["cpu"]
        total = sum(spent.values())
        for profile in profiles:
            shares = {f["name"]: f for f in profile["functions"] if f["path"] == target.source}
            for name in ("python", "native", "system"):
                row = shares[name]
                self.assert_share(row, 100 * spent[name] / total, f"{name} {spent}")
                self.assertGreater(row[f"{name}_pct"], 50, f"{name} {row}")
                self.assertAlmostEqual(row["python_pct"] + row["native_pct"] + row["system_pct"], 100, delta=0.1)

    @each_python()
    def test_recursion_and_chains_of_generators(self, python):
        """Their stacks are hardly ever the same for as long as it takes to read them. Of the samples in generators nine of ten
        were charged to nobody, or to what had run before."""
        target = self.start(python, "cpu_chains.py")
        profile = self.profile(target, "-d", "3s", *RATE)
        result = target.finish()
        self.assertTrue(result["ok"], result)
        spent = result["cpu"]
        self.assertLess(profile["session"]["loss"]["unreadable_stacks"], 0.05 * profile["totals"]["cpu_samples"], profile["session"])
        for name, seconds in spent.items():
            row = self.line(profile, target, name)
            said = (row["cpu_total_pct"], {n: self.line(profile, target, n)["cpu_total_pct"] for n in spent}, spent)
            self.assertAlmostEqual(row["cpu_total_pct"], 100 * seconds / sum(spent.values()), delta=8, msg=said)

    @each_python()
    def test_rates_above_what_sleeping_can_keep(self, python):
        target = self.start(python, "cpu_shares.py", "3")
        profile = self.profile(target, "-d", "1s", "-r", "10000", "--cpu")
        self.assertGreater(profile["totals"]["cpu_samples"], 100)
        for function in profile["functions"]:
            if function["path"] == target.source and function["name"] in target.truth["shares"]:
                # Samples this close together are not independent of each other: the interval is too narrow here.
                self.assertAlmostEqual(function["cpu_pct"], 100 * target.truth["shares"][function["name"]], delta=25)

    @each_python()
    def test_stopped_for_each_sample(self, python):
        target = self.start(python, "cpu_modes.py")
        profile = self.profile(target, "-d", "1s", *RATE, "--blocking")
        self.assertEqual(profile["session"]["engine"]["cpu"], "blocking")
        self.assertGreater(profile["session"]["longest_stop_us"], 0)
        shares = {f["name"]: f for f in profile["functions"] if f["path"] == target.source}
        for name in ("python", "native", "system"):
            self.assertGreater(shares[name][f"{name}_pct"], 50, shares[name])

    @each_python()
    def test_native_frames(self, python):
        target = self.start(python, "cpu_modes.py")
        run = self.memattach("-p", str(target.pid), "-d", "1s", *RATE, "-n", "-q", "--collapsed", "-")
        stacks = run.out.splitlines()
        # What Python called, on top of the line that called it; and not what the interpreter did to call it.
        inside = [s for s in stacks if "native (" in s and "libz" in s.split("native (")[-1]]
        self.assertTrue(inside, run.out[:3000])
        for stack in inside:
            self.assertNotIn("_PyEval_EvalFrameDefault", stack)
            # Nor what the interpreter itself started from: the loop was found, in stripped builds too.
            self.assertNotIn("Py_RunMain", stack)
            self.assertLess(stack.index("main ("), stack.index("native ("))

    @each_python(kinds=("host",))
    def test_where_perf_is_refused(self, python):
        """Samples by the clock, without a split, in proportion to CPU time."""
        target = self.start(python, "cpu_threads.py")
        target.send("nappers 8")
        target.read_json()
        waited_before_s = target.waited_for_cpu_s()
        profile = self.memattach(*("-p", target.pid, "-d", "3s", "--cpu", "-r", "200", "--json", "-"), wrap=WITHOUT_PERF).json
        waited_s = target.waited_for_cpu_s() - waited_before_s
        self.assertEqual(profile["session"]["engine"]["cpu"], "timer")
        self.assertIn("no Python/native/system split", profile["session"]["notes"][0])
        row = self.line(profile, target, "napper")
        self.assertIsNone(row["python_pct"])
        cpu_s = profile["totals"]["cpu_s"]
        samples_s = profile["totals"]["cpu_samples"] / 200
        self.assertGreater(cpu_s, 0.05)
        # A thread that waits for a CPU looks as if it had one, until its samples are four ahead of what it has burned.
        ahead_s = min(waited_s, 9 * 4 / 200)
        self.assertGreater(samples_s, cpu_s - 3 * (cpu_s / 200) ** 0.5 - 0.05 * cpu_s)
        self.assertLess(samples_s, cpu_s + 3 * (cpu_s / 200) ** 0.5 + 0.05 * cpu_s + ahead_s)

    def test_without_privileges(self):
        """Only the user side may be watched then: system time is what leaves no record."""
        if os.geteuid() != 0:
            self.skipTest("needs root, to become somebody else")
        python = pythons(kinds=("system",))[0]
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        target = self.start(python, "cpu_modes.py", wrap=nobody)
        run = self.memattach("-p", str(target.pid), "-d", "3s", *RATE, "--json", "-", "-q", wrap=nobody)
        profile = run.json
        if profile["session"]["engine"]["cpu"] != "perf":
            self.skipTest("perf is refused to ordinary users here")
        spent = target.finish()["cpu"]
        total = sum(spent.values())
        shares = {f["name"]: f for f in profile["functions"] if f["path"] == target.source}
        for name in ("python", "native", "system"):
            self.assert_share(shares[name], 100 * spent[name] / total, f"{name} {spent}")
            self.assertGreater(shares[name][f"{name}_pct"], 50, f"{name} {shares[name]}")


class ThreadsAndProcesses(LiveTest):
    @each_python()
    def test_threads_share_the_gil(self, python):
        target = self.start(python, "cpu_threads.py")
        target.send("threads 3")
        tids = target.read_json()["tids"]
        profile = self.profile(target, "-d", "2s", *RATE, "-t")
        row = self.line(profile, target, "thread")
        self.assertGreater(row["cpu_pct"], 60)
        seen = {t["tid"]: t for t in profile["threads"]}
        for tid in tids:
            self.assertIn(tid, seen)
            self.assertAlmostEqual(seen[tid]["cpu_pct"], 100 / 3, delta=2 * seen[tid]["cpu_ci95"] + 5)

    @each_python()
    def test_as_many_samples_as_cpu_time(self, python):
        """Threads that run for moments, by their own events and at ticks: none counts for both."""
        target = self.start(python, "cpu_threads.py")
        target.send("nappers 8")
        target.read_json()
        for rate in (200, 1000):
            profile = self.profile(target, "-d", "2s", "--cpu", "-r", str(rate))
            if profile["session"]["engine"]["cpu"] != "perf":
                self.skipTest("perf is refused here")
            cpu_s, samples_s = profile["totals"]["cpu_s"], profile["totals"]["cpu_samples"] / rate
            self.assertGreater(cpu_s, 0.1)
            missed_s = profile["session"]["loss"]["missed_samples"] / rate
            self.assertGreater(samples_s, cpu_s - missed_s - 4 * (cpu_s / rate) ** 0.5 - 0.1 * cpu_s, profile["totals"])
            # A tick that counts beside an event makes it 1.7 times as many. On a busy machine ticks come late, when the threads run.
            self.assertLess(samples_s, 1.4 * cpu_s + 4 * (cpu_s / rate) ** 0.5, profile["totals"])
            self.assertGreater(self.line(profile, target, "napper")["cpu_samples"], 0)

    @each_python()
    def test_only_who_holds_the_gil(self, python):
        target = self.start(python, "cpu_threads.py", env={"PYTHON_GIL": "1"} if python.free_threaded else None)
        target.send("threads 2")
        target.read_json()
        profile = self.profile(target, "-d", "1s", *RATE, "-g")
        row = self.line(profile, target, "thread")
        self.assertEqual(row["gil_pct"], 100)

    @each_python(free_threaded=True)
    def test_threads_without_a_gil(self, python):
        """They run at the same time. Nobody holds what isn't there: with --gil the profile was empty without a word."""
        target = self.start(python, "cpu_threads.py")
        target.send("threads 2")
        tids = target.read_json()["tids"]
        self.assert_error(self.memattach("-p", target.pid, "-d", "1s", "--cpu", "-g", code=2), "without a GIL", "--gil")
        # A command has no GIL yet that could be asked about.
        output = f"{self.directory()}/profile.json"
        self.memattach("--cpu", "-g", "--json", output, "--", python.path, "-c", "sum(range(10**7))")
        self.assertTrue(any("no sample held a GIL" in note for note in self.read_profile(output)["session"]["notes"]))
        profile = self.profile(target, "-d", "1s", *RATE, "-t")
        row = self.line(profile, target, "thread")
        self.assertIsNone(row["gil_pct"])
        samples = {t["tid"]: t["cpu_samples"] for t in profile["threads"]}
        for tid in tids:
            self.assertGreater(samples[tid], 10)

    @each_python(minimum=(3, 14))
    def test_what_the_jit_made_is_python(self, python):
        """It lies in memory of no file, like any code that is made at run time, and was taken for native code."""
        target = self.start(python, "jit.py", env={"PYTHON_JIT": "1"})
        if not target.truth["jit"]:
            self.skipTest(f"{python} was built without a JIT")
        profile = self.profile(target, "-d", "1s", *RATE, "--reduced-profile")
        row = next(f for f in profile["functions"] if f["name"] == "compiled")
        self.assertGreater(row["cpu_pct"], 80)
        self.assertGreater(row["python_pct"], 90)
        self.assertTrue(any("JIT" in note for note in profile["session"]["notes"]), profile["session"]["notes"])

    @each_python()
    def test_waiting_threads(self, python):
        target = self.start(python, "cpu_threads.py")
        profile = self.profile(target, "-d", "1s", "-r", "100", "--cpu", "-i")
        # The innermost frame waits in handshake.py's os.read().
        waiting = [l for f in profile["files"] for l in f["lines"] if l["wait_samples"]]
        self.assertEqual([l["function"] for l in waiting], ["Target._take"] if python.minor >= (3, 11) else ["_take"])
        self.assertGreater(waiting[0]["wait_samples"], 20)
        self.assertIsNotNone(self.line(profile, target, "wait"))

    @each_python()
    def test_children(self, python):
        target = self.start(python, "cpu_threads.py")
        target.send("fork")
        forked = target.read_json()["pid"]
        run = self.memattach_start("-p", str(target.pid), "-d", "3s", *RATE, "-s", "-t", "--json", "-")
        run.wait_attached()
        target.send("spawn")  # one that exists at attach, and one that appears
        spawned = target.read_json()["pid"]
        profile = run.wait().json
        pids = {t["pid"] for t in profile["threads"] if t["cpu_samples"]}
        self.assertTrue({forked, spawned} <= pids, (forked, spawned, profile["threads"]))
        self.assertGreater(self.line(profile, target, "forked")["cpu_samples"], 10)
        self.assertIn("spawned", {f["name"] for f in profile["functions"]})


if __name__ == "__main__":
    main()
