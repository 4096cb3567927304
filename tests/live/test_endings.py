"""Every way in which a CPU profile can end: what was gathered is there, and the exit code says what happened."""

import fcntl
import json
import os
import signal

from harness import LiveTest, each_python, main, pythons

RATE = ("-r", "500", "--cpu")


class Endings(LiveTest):
    def end_midway(self, python, order, code, expect):
        target = self.start(python, "cpu_threads.py", expect=expect)
        target.send("threads 1")
        target.read_json()
        run = self.memattach_start("-p", str(target.pid), "-d", "60s", *RATE, "--json", "-")
        run.wait_attached()
        target.send(order)
        result = run.wait()
        self.assertEqual(result.code, code, str(result))
        self.assertIn("functions", result.json)
        return result.json

    @each_python()
    def test_killed(self, python):
        self.end_midway(python, "kill", 3, -signal.SIGKILL)

    @each_python()
    def test_executes_another_program(self, python):
        self.end_midway(python, "exec /bin/true", 3, 0)

    @each_python()
    def test_finishes(self, python):
        target = self.start(python, "cpu_shares.py", "1")
        run = self.memattach_start("-p", str(target.pid), "-d", "60s", *RATE, "--json", "-")
        run.wait_attached()
        target.finish()
        result = run.wait()
        self.assertEqual(result.code, 0, str(result))

    def test_interrupted(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            target = self.start(pythons()[0], "cpu_shares.py", "1")
            run = self.memattach_start("-p", str(target.pid), "-d", "60s", *RATE, "--json", "-")
            run.wait_attached()
            run.signal(number)
            result = run.wait()
            self.assertEqual(result.code, 128 + number, str(result))
            self.assertIn("functions", result.json)

    def test_interrupted_while_it_writes(self):
        """The session is over and its reader slow: what was gathered isn't lost by the Ctrl-C that came too late."""
        target = self.start(pythons()[0], "cpu_shares.py", "1")
        run = self.memattach_start("-p", str(target.pid), "-d", "300ms", *RATE, "--json", "-")
        pipe = run.process.stdout.fileno()
        size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
        begin = os.read(pipe, 1)
        run.signal(signal.SIGINT)
        text = begin.decode() + run.process.communicate()[0]
        self.assertGreater(len(text), 1 + size)
        self.assertIn("functions", json.loads(text))
        self.assertEqual(run.process.returncode, 0)

    @each_python()
    def test_stopped_target(self, python):
        """SIGSTOP holds it: nothing runs, nothing hangs, and SIGCONT lets it go on."""
        target = self.start(python, "cpu_shares.py", "1")
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)  # on a busy machine it stops when it gets a processor
        profile = self.profile(target, "-d", "500ms", *RATE)
        self.assertLess(profile["totals"]["cpu_samples"], 10)
        os.kill(target.pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
