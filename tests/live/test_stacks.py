"""What the stack reader says of a process that runs is what the process says of itself: functions, files and exact lines,
in every version, of every way to get into a frame."""

import json
import pathlib
import subprocess
import time

from harness import MEMATTACH, LiveTest, each_python, main

READ_STACKS = str(pathlib.Path(MEMATTACH).parent / "tests/stacks/read_stacks")


class Reader:
    """read_stacks on a target: one answer for each read()."""

    def __init__(self, test, pid):
        self.process = subprocess.Popen(
            [READ_STACKS, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        test.addCleanup(self.end)

    def read(self):
        self.process.stdin.write("read\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"read_stacks ended with {self.process.wait()}: {self.process.stderr.read()}")
        return json.loads(line)["threads"]

    def end(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(60)
        self.process.stdout.close()
        self.process.stderr.close()


class Stacks(LiveTest):
    def until_done(self, target):
        """The stacks that the target tells, one by one, until its scenario has ended."""
        while True:
            told = target.read_json()
            if told.get("done"):
                return
            yield told
            target.send("go")

    def settled(self, reader, tid):
        """The target said where it is just before it blocked: read until its innermost frame is the blocking one."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            # Of several: up to 3.12 a subinterpreter's thread state says that it is its creator's, whoever runs it.
            threads = [t for t in reader.read() if t["tid"] == tid]
            for thread in threads:
                if thread["frames"] and thread["frames"][0][0].split(".")[-1] == "_take":
                    return thread
        self.fail(f"thread {tid} never blocked: {threads}")

    @each_python()
    def test_what_the_target_says(self, python):
        target = self.start(python, "stacks.py")
        reader = Reader(self, target.pid)
        parked = target.lines["parked"]
        places = 0
        for scenario in target.truth["scenarios"]:
            target.send(scenario)
            for told in self.until_done(target):
                places += 1
                thread = self.settled(reader, target.pid)
                frames = thread["frames"]
                self.assertEqual(thread["status"], "consistent", scenario)
                at = next(i for i, frame in enumerate(frames) if frame[0] == "park")
                self.assertEqual(frames[at], ["park", target.source, parked], scenario)
                self.assertEqual(frames[at + 1 :], told["stack"], f"{scenario}, place {places}")
                self.assertFalse(thread["broken"] or thread["truncated"])
        self.assertGreater(places, 30)

    @each_python()
    def test_deeper_than_what_is_kept(self, python):
        target = self.start(python, "stacks.py")
        reader = Reader(self, target.pid)
        target.send("deep")
        for told in self.until_done(target):
            thread = self.settled(reader, target.pid)
            frames = thread["frames"]
            self.assertTrue(thread["truncated"])
            self.assertEqual(len(frames), 1025)
            self.assertEqual(frames[-1][0], "[truncated]")
            at = next(i for i, frame in enumerate(frames) if frame[0] == "park")
            self.assertEqual(frames[at + 1 : -1], told["stack"][: len(frames) - at - 2])

    @each_python()
    def test_threads_and_their_ids(self, python):
        target = self.start(python, "stacks.py")
        reader = Reader(self, target.pid)
        target.send("threads")
        for told in self.until_done(target):
            self.settled(reader, target.pid)
            threads = {t["tid"]: t for t in reader.read()}
            self.assertEqual(set(threads), {told["main"]} | {tid for tid, _ in told["threads"]})
            for tid, stack in told["threads"]:
                frames = threads[tid]["frames"]
                own = next(i for i, frame in enumerate(frames) if frame[0].split(".")[-1] == "body")
                self.assertEqual(frames[own + 1 :], stack)
                self.assertFalse(threads[tid]["holds_gil"])

    @each_python()
    def test_subinterpreter(self, python):
        target = self.start(python, "stacks.py")
        reader = Reader(self, target.pid)
        target.send("subinterpreter")
        for told in self.until_done(target):
            self.settled(reader, target.pid)
            threads = [t for t in reader.read() if t["interpreter"] == told["id"] and t["frames"]]
            self.assertEqual(len(threads), 1)
            frames = threads[0]["frames"]
            self.assertEqual(frames[0][0], "inner")
            self.assertEqual(frames[1:][: len(told["stack"])], told["stack"])


if __name__ == "__main__":
    main()
