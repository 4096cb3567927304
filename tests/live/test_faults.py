"""Faults, injected into the memory engine: the target must come through, whatever dies, stops or forks.

    MEMATTACH_FAULTS=1000 python3 tests/live/test_faults.py -v      # how often a half is killed (default 100)
"""
# labels: faults
# timeout: 900
# serial

import os
import random
import signal
import subprocess
import time

from harness import LiveTest, each_python, faults, main, wounds


def tracer_of(pid):
    """The process that traces `pid`, 0 for none; None where it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("TracerPid:"):
                    return int(line.split()[1])
    except OSError:
        return None
    return None


def until(condition, what, timeout=30):
    """Waits for something that another process does."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for: {what}")
        time.sleep(0.0005)


class Faulty(LiveTest):
    # A large budget and a small threshold: armed and sampling as much of the time as can be, which is the hard case.
    HARD = ["--memory", "--max-overhead", "30", "--malloc-threshold", "0.01"]

    def attach(self, target, *args, hard=True, wrap=()):
        """memattach, once the target is traced."""
        running = self.memattach_start("-p", target.pid, *(self.HARD if hard else ["--memory"]), "--json", "-", *args, wrap=wrap)
        until(lambda: tracer_of(target.pid) != 0 or running.process.poll() is not None, "the target to be traced")
        self.assertIsNone(running.process.poll(), "memattach ended")
        return running



class KilledHalves(Faulty):
    def test_analysing_half(self):
        """SIGKILL of the half that analyses: the other one undoes everything and ends."""
        target = self.start_any("faults.py", "steady")
        chance = random.Random(1)
        for round_ in range(faults(100)):
            running = self.attach(target, "-q")
            tracer = tracer_of(target.pid)
            time.sleep(chance.random() * 0.1)
            running.process.kill()
            running.process.wait()
            until(lambda: b"Z" in stat_of(tracer), "the tracing half to end")
            self.assertEqual(wounds(target.pid), [], f"in round {round_}")

    def test_tracing_half(self):
        """SIGKILL of the half that traces: the other one repairs the text. A thread that has trapped just then dies of
        SIGTRAP, and nothing can prevent that; how often is measured here, and all that survive must be whole."""
        for args, hard in ((["default"], False), (["hard"], True)):
            self.kill_tracing_half(args[0], hard, faults(100) // 2)

    def kill_tracing_half(self, name, hard, rounds):
        target = self.start_any("faults.py", "steady", expect=None)
        chance = random.Random(2)
        survived = 0
        for round_ in range(rounds):
            running = self.attach(target, "-q", "-d", "20s", hard=hard)
            tracer = tracer_of(target.pid)
            time.sleep(chance.random() * 0.1)
            try:
                os.kill(tracer, signal.SIGKILL)
            except ProcessLookupError:
                pass
            until(lambda: b"Z" in stat_of(tracer), "the tracing half to be dead")
            running.signal(signal.SIGINT)
            run = running.wait()
            hurt = wounds(target.pid) if target.process.poll() is None else []
            if hurt:  # it may be dying just now: its memory goes before its exit can be seen
                try:
                    target.process.wait(5)
                except subprocess.TimeoutExpired:
                    pass
            # Where there wasn't anything to profile yet.
            begun = "was killed while it attached" not in run.err
            if target.process.poll() is None:
                survived += 1
                self.assertEqual(hurt, [], f"in round {round_} ({name})\n{run}")
                self.assertIn(run.code, (0, 128 + signal.SIGINT) if begun else (2,), f"\n{run}")
            else:
                self.assertIn(-target.process.returncode, (signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT))
                self.assertIn(run.code, (0, 3, 128 + signal.SIGINT) if begun else (2,), f"\n{run}")
                target = self.start_any("faults.py", "steady", expect=None)
        print(f"SIGKILL of the tracing half, {name} options: the target survived {survived} of {rounds} times", flush=True)
        result = target.finish()
        self.assertTrue(result["ok"], result)
        self.assertGreater(survived, 0)


def stat_of(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2][:3]
    except OSError:
        return b"Z"


class Storms(Faulty):
    def storm(self, python, mode, *args):
        target = self.start(python, "faults.py", mode)
        profile = self.profile(target, *self.HARD, "-d", "1500ms", *args)
        self.assertTrue(profile["session"]["text_verified"], profile["session"])
        self.assertGreater(profile["totals"]["alloc_bytes"], 0)
        self.assert_unharmed(target)
        self.assertGreater(target.result["rounds"], 0)
        return profile

    @each_python()
    def test_steady(self, python):
        self.storm(python, "steady")

    @each_python(minimum=(3, 11), maximum=(3, 12))
    def test_forks(self, python):
        self.storm(python, "forks")

    @each_python(minimum=(3, 12), maximum=(3, 12))
    def test_forks_followed(self, python):
        """Each child whose memory couldn't be watched had a note of its own: hundreds."""
        notes = self.storm(python, "forks", "-s")["session"]["notes"]
        self.assertLess(len([note for note in notes if "child process" in note]), 2)
        self.assertLess(len(notes), 8, notes)

    @each_python(minimum=(3, 11), maximum=(3, 12))
    def test_threads(self, python):
        notes = self.storm(python, "threads")["session"]["notes"]
        self.assertTrue([note for note in notes if "threads a second" in note], notes)

    @each_python(minimum=(3, 11), maximum=(3, 11))
    def test_two_thousand_threads(self, python):
        target = self.start(python, "faults.py", "storm")
        running = self.attach(target)
        target.send("storm 2000")
        self.assertEqual(target.read_json(120)["rounds"], 2000)
        running.signal(signal.SIGINT)
        session = running.wait().json["session"]
        self.assertTrue(session["text_verified"], session)

    @each_python(minimum=(3, 11), maximum=(3, 12))
    def test_signals(self, python):
        self.storm(python, "signals")

    @each_python(minimum=(3, 11), maximum=(3, 11))
    def test_sleepers_sleep_on(self, python):
        self.storm(python, "sleeps")


class Ends(Faulty):
    def end(self, order, code, memattach_codes):
        target = self.start_any("faults.py", "exits", expect=code)
        running = self.attach(target, "-d", "30s")
        target.send(order)
        run = running.wait()
        self.assertIn(run.code, memattach_codes, f"\n{run}")
        self.assertTrue(run.json["session"]["target_exited"] or order == "exec", f"\n{run}")
        self.assertEqual(target.process.wait(30), code)

    def test_exit(self):
        self.end("exit", 7, (0,))

    def test_os_exit(self):
        self.end("os_exit", 7, (0,))

    def test_crash(self):
        self.end("crash", -signal.SIGSEGV, (3,))

    def test_kill(self):
        self.end("kill", -signal.SIGKILL, (3,))

    def test_exec(self):
        self.end("exec", 0, (3,))


class Signalled(Faulty):
    def test_memattach_is_signalled(self):
        target = self.start_any("faults.py", "steady")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            running = self.attach(target)
            running.signal(number)
            run = running.wait()
            self.assertEqual(run.code, 128 + number, f"\n{run}")
            self.assertTrue(run.json["session"]["text_verified"])
            self.assertEqual(wounds(target.pid), [])

    def test_the_tracing_half_is_signalled(self):
        """As the terminal and `killall` do; only SIGKILL ends it before its time."""
        target = self.start_any("faults.py", "steady")
        running = self.attach(target)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGTSTP):
            os.kill(tracer_of(target.pid), number)
        running.signal(signal.SIGINT)
        run = running.wait()
        self.assertTrue(run.json["session"]["text_verified"], f"\n{run}")

    def test_target_is_stopped_and_continued(self):
        target = self.start_any("faults.py", "steady")
        running = self.attach(target)
        for _ in range(20):
            os.kill(target.pid, signal.SIGSTOP)
            until(lambda: stat_of(target.pid)[1:2] in (b"T", b"t"), "the target to stop")
            os.kill(target.pid, signal.SIGCONT)
        running.signal(signal.SIGINT)
        self.assertTrue(running.wait().json["session"]["text_verified"])

    def test_left_while_stopped(self):
        """A target that its user has stopped stays stopped when memattach leaves, and goes on when its user says so."""
        target = self.start_any("faults.py", "steady")
        running = self.attach(target)
        os.kill(target.pid, signal.SIGSTOP)
        until(lambda: stat_of(target.pid)[1:2] in (b"T", b"t"), "the target to stop")
        running.signal(signal.SIGINT)
        running.wait()
        until(lambda: stat_of(target.pid)[1:2] == b"T", "the target to be stopped and not traced")
        self.assertEqual(wounds(target.pid, stopped=True), [])
        os.kill(target.pid, signal.SIGCONT)

    def test_standard_output_is_closed(self):
        target = self.start_any("faults.py", "steady")
        running = self.attach(target)
        running.process.stdout.close()
        running.signal(signal.SIGINT)
        running.process.wait(60)
        self.assertEqual(wounds(target.pid), [])


class Scarcity(Faulty):
    def test_second_profiler(self):
        target = self.start_any("faults.py", "steady")
        running = self.attach(target)
        second = self.memattach("-p", target.pid, "--memory", "-d", "1s", code=2)
        self.assert_error(second, "traced", tracer_of(target.pid))
        running.signal(signal.SIGINT)
        self.assertTrue(running.wait().json["session"]["text_verified"])

    def test_little_memory(self):
        """Whatever memattach can't get, it fails for itself alone."""
        target = self.start_any("faults.py", "steady")
        for mb in (16, 24, 32, 40, 48, 64, 96, 128):
            run = self.memattach(
                "-p", target.pid, *self.HARD, "-d", "200ms", code=None, wrap=["prlimit", f"--as={mb << 20}"]
            )
            self.assertEqual(wounds(target.pid), [], f"with {mb} MB\n{run}")

    def test_full_disk(self):
        target = self.start_any("faults.py", "steady")
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full here")
        with open("/dev/full", "wb") as full:
            import subprocess

            from harness import MEMATTACH

            done = subprocess.run(
                [MEMATTACH, "-p", str(target.pid), "--memory", "-d", "300ms", "--json", "-"],
                stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
            )
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(wounds(target.pid), [])


if __name__ == "__main__":
    main()
