"""`memattach dump`: who holds the GIL and who waits for it. `--native`: the native frames on top of the Python frames that
called them, and nobody harmed by it."""

# timeout: 900

import os
import re
import signal
import time

from harness import LiveTest, each_python, main, wounds


def state(pid, tid):
    with open(f"/proc/{pid}/task/{tid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


class Gil(LiveTest):
    @each_python(free_threaded=False)
    def test_who_holds_it_and_who_waits_for_it(self, python):
        target = self.start(python, "gil.py")
        # Both sides of the path are in the target's root.
        seen = f"{os.path.dirname(target.source)}/fifo"
        fifo = f"{python.root}{seen}"
        os.mkfifo(fifo)
        target.send(f"hold {seen}")
        named = target.read_json()["threads"]
        # Who waits wakes up for a moment every 5 ms.
        for _ in range(500):
            threads = {t["tid"]: t for t in self.memattach("dump", "-p", target.pid, "--json").json["threads"]}
            wanter, locked = threads[named["wanter"]], threads[named["locked"]]
            holder = [t for t in threads.values() if t["waiting_in"] == "read" and t["tid"] != target.pid]
            text = self.memattach("dump", "-p", target.pid).out
            if holder and wanter["waits_for_gil"] and re.search(rf"Thread {wanter['tid']} .* waiting for the GIL\n", text):
                break
        else:
            self.fail(f"nobody was seen waiting: {threads}")
        self.assertEqual((wanter["state"], wanter["waiting_in"], wanter["waiting_on"]), ("waiting", "futex", "the GIL"))
        self.assertEqual(wanter["frames"][0]["line"], target.lines["wanter"])
        self.assertEqual((locked["waiting_in"], locked["waiting_on"]), ("futex", None))
        self.assertEqual(locked["frames"][0]["line"], target.lines["locked"])
        self.assertEqual(holder[0]["frames"][0]["line"], target.lines["holder"])
        for thread in threads.values():
            self.assertEqual(thread["holds_gil"], thread is holder[0])
        for thread in (locked, holder[0]):
            self.assertFalse(thread["waits_for_gil"])
        with open(fifo, "wb") as file:
            file.write(b"x")


# In 3.12 a subinterpreter's thread state says that it is its creator's thread, whoever runs it.
class GilOfEachInterpreter(LiveTest):
    def computing(self, python, order):
        target = self.start(python, "own_gil.py")
        target.send(order)
        return target, target.read_json()

    def dumped(self, target, told):
        """The two threads that compute, in a dump, by name."""
        threads = {t["tid"]: t for t in self.memattach("dump", "-p", target.pid, "--json").json["threads"]}
        self.assertFalse(threads[target.pid]["holds_gil"])
        both = {name: threads[tid] for name, tid in told["threads"].items()}
        for name, thread in both.items():
            self.assertEqual(thread["frames"][0]["function"], name)
        return both

    @each_python(minimum=(3, 13), free_threaded=False)
    def test_own_ones_are_held_at_the_same_time(self, python):
        target, told = self.computing(python, "own")
        # Each gives it up for a moment now and then.
        for _ in range(100):
            both = self.dumped(target, told)
            if all(thread["holds_gil"] for thread in both.values()):
                break
        else:
            self.fail(f"never held both: {both}")
        profile = self.profile(target, "-d", "1s", "-r", "500", "--cpu", "-g", "-t")
        samples = {t["tid"]: t["cpu_samples"] for t in profile["threads"]}
        for name, tid in told["threads"].items():
            self.assertGreater(samples[tid], 10, f"{name}: {profile['threads']}")

    @each_python(minimum=(3, 13), free_threaded=False)
    def test_a_shared_one_is_held_by_one(self, python):
        target, told = self.computing(python, "shared")
        held = [sum(t["holds_gil"] for t in self.dumped(target, told).values()) for _ in range(20)]
        self.assertLessEqual(max(held), 1)
        self.assertIn(1, held)


class NestedInterpreters(LiveTest):
    """Up to 3.12 the state that such code runs on says that it is its creator's thread: dump showed it there, in place of what
    that thread did. And what had called it was never shown."""

    def look(self, python, order):
        target = self.start(python, "nested_interpreters.py")
        target.send(order)
        tid = target.read_json()["tid"]
        dump = self.memattach("dump", "-p", target.pid, "--json").json
        profile = self.profile(target, "-d", "500ms", "-r", "200", "--cpu", "-t")
        text = self.memattach("dump", "-p", target.pid).out
        threads = {t["tid"]: [f["function"] for f in t["frames"]] for t in dump["threads"]}
        ran = max(profile["threads"], key=lambda t: t["cpu_samples"])
        self.assertEqual(ran["tid"], tid)
        row = self.line(profile, target, "run")
        self.assertGreater(row["cpu_total_pct"], 90, row)
        if python.minor >= (3, 11):
            self.assertEqual(threads[tid][:3], ["inner", "<module>", "run"])
            self.assertNotIn(None, threads)
        else:
            # Nothing tells whose the inner frames are.
            self.assertEqual(threads[tid][0], "run")
            self.assertEqual(threads[None], ["inner", "<module>"])
            self.assertIn("A thread, it can't be told which", text)
        return target, threads

    @each_python()
    def test_on_the_main_thread(self, python):
        target, threads = self.look(python, "main")
        self.assertEqual(threads[target.pid][-1], "<module>")

    @each_python()
    def test_on_another_thread(self, python):
        target, threads = self.look(python, "other")
        self.assertNotIn("inner", threads[target.pid])
        self.assertIn("main", threads[target.pid])


class ThreadNames(LiveTest):
    @each_python()
    def test_threads_have_the_names_that_python_gave_them(self, python):
        target = self.start(python, "thread_names.py")
        names = {int(tid): name for tid, name in target.truth["names"].items()}
        dump = self.memattach("dump", "-p", target.pid, "--json").json
        self.assertEqual({t["tid"]: t["name"] for t in dump["threads"] if t["tid"] in names}, names)
        profile = self.profile(target, "-d", "1s", "--cpu", "-t", "-i")
        self.assertEqual({t["tid"]: t["name"] for t in profile["threads"] if t["tid"] in names}, names)


class NativeDump(LiveTest):
    def start_waiting(self, python):
        target = self.start(python, "native_waits.py")
        for name in ("waiter", "deep"):
            target.wait_until_blocked(target.truth["threads"][name])
        return target

    def dump(self, target, name="waiter"):
        """On a machine that is busy a thread may not get a CPU to come to a stop on: until `name` does."""
        for _ in range(50):
            dump = self.memattach("dump", "-p", target.pid, "-n", "--json").json
            threads = {t["tid"]: t for t in dump["threads"]}
            if "in time" not in (threads[target.truth["threads"][name]]["note"] or ""):
                return dump, threads
        self.fail(f"{name} never came to a stop: {dump}")

    def inside(self, thread, name):
        """The native frames inside of the innermost Python frame, which is to be of function `name`."""
        for i, frame in enumerate(thread["frames"]):
            if frame["kind"] == "python":
                self.assertEqual(frame["function"].split(".")[-1], name, thread)
                return thread["frames"][:i]
        self.fail(f"no Python frames: {thread}")

    def assert_sleeps(self, native):
        """In libc: in the sleep itself, or in what newer ones make system calls with (a function without a symbol)."""
        self.assertIn("libc", native[0]["file"])
        self.assertTrue(any(re.search("sleep|select", f["function"]) for f in native[:4]), native)

    def until_inside(self, target, name, pattern):
        """A thread that goes in and out of native code is dumped until it is caught there."""
        for _ in range(50):
            _, threads = self.dump(target, name)
            frames = threads[target.truth["threads"][name]]["frames"]
            native = frames[: next(i for i, f in enumerate(frames) if f["kind"] == "python")]
            if any(re.search(pattern, f"{f['function']} {os.path.basename(f['file'])}") for f in native):
                self.assertEqual([f["line"] for f in native], [None] * len(native))
                return
        self.fail(f"{name} was never seen in {pattern}: {frames}")

    @each_python()
    def test_what_python_called(self, python):
        target = self.start_waiting(python)
        dump, threads = self.dump(target)
        self.assertEqual(set(threads), set(map(int, os.listdir(f"/proc/{target.pid}/task"))))
        late = [t for t in dump["threads"] if t["note"] and "no native frames" in t["note"]]
        self.assertEqual(dump["stops"]["threads"] + len(late), len(threads))
        self.assertGreater(dump["stops"]["longest_ns"], 0)
        waiter = threads[target.truth["threads"]["waiter"]]
        self.assertIsNone(waiter["note"])
        # What the interpreter was started with is left out, and so is its loop.
        for thread in dump["threads"]:
            self.assertFalse({"_PyEval_EvalFrameDefault", "Py_RunMain"} & {f["function"] for f in thread["frames"]})
        native = self.inside(waiter, "waiter")
        self.assert_sleeps(native)
        self.until_inside(target, "packer", "deflate|zlib|libz")
        self.until_inside(target, "hasher", "sha|hash|crypto")
        text = self.memattach("dump", "-p", target.pid, "-n").out
        self.assertRegex(text, r"(sleep|select) \(.*libc.*\)\n(.*\n)+ +waiter \(.*native_waits.py")
        self.assertRegex(text, r"\n\d threads stopped for the native frames, one at a time, for \d+ µs at most\n$")
        self.assertIsNone(self.memattach("dump", "-p", target.pid, "--json").json["stops"])

    @each_python(kinds=("host",))
    def test_a_stack_that_is_deeper_than_native_frames_are_unwound(self, python):
        """Where each Python call is several native ones (up to 3.10), its outer end is missing."""
        target = self.start_waiting(python)
        _, threads = self.dump(target, "deep")
        deep = threads[target.truth["threads"]["deep"]]
        self.assertIsNone(deep["note"])
        native = self.inside(deep, "deep")
        self.assert_sleeps(native)
        rest = deep["frames"][len(native) :]
        self.assertEqual({f["kind"] for f in rest}, {"python"})
        self.assertEqual([f["function"].split(".")[-1] for f in rest].count("deep"), 401)

    @each_python(kinds=("host",))
    def test_a_stopped_process_stays_stopped(self, python):
        target = self.start_waiting(python)
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        dump, threads = self.dump(target)
        self.assertEqual({t["state"] for t in dump["threads"]}, {"stopped"})
        self.assert_sleeps(self.inside(threads[target.truth["threads"]["waiter"]], "waiter"))
        # Who is let go wakes up to stop again.
        for tid in os.listdir(f"/proc/{target.pid}/task"):
            while state(target.pid, tid) != "T":
                time.sleep(0.001)
        self.assertEqual(wounds(target.pid, stopped=True), [])
        os.kill(target.pid, signal.SIGCONT)

    @each_python(kinds=("host",))
    def test_one_that_waits_uninterruptibly_has_its_python_frames(self, python):
        target = self.start_waiting(python)
        before = set(os.listdir(f"/proc/{target.pid}/task"))
        fifo = f"{self.directory()}/fifo"
        os.mkfifo(fifo)
        target.send(f"stick {fifo}")
        while not (new := set(os.listdir(f"/proc/{target.pid}/task")) - before):
            time.sleep(0.001)
        tid = int(new.pop())
        while state(target.pid, tid) != "D":
            time.sleep(0.001)
        dump, threads = self.dump(target)
        self.assertIn("didn't come to a stop", threads[tid]["note"])
        self.assertEqual({f["kind"] for f in threads[tid]["frames"]}, {"python"})
        self.assertEqual(threads[tid]["frames"][0]["line"], target.lines["stuck"])
        self.assert_sleeps(self.inside(threads[target.truth["threads"]["waiter"]], "waiter"))
        self.assertIn("    (no native frames: it didn't", self.memattach("dump", "-p", target.pid, "-n").out)
        self.assertEqual(wounds(target.pid), [])
        os.close(os.open(fifo, os.O_WRONLY))


if __name__ == "__main__":
    main()
