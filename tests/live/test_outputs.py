"""What is written where: files, stdout, a terminal, and what a started command sees of it."""

import json
import os
import pty
import signal
import subprocess
import sys

from harness import LiveTest, main


class Outputs(LiveTest):
    def test_all_at_once_and_again_from_json(self):
        target = self.start_any("cpu_shares.py")
        d = self.directory()
        run = self.memattach("-p", target.pid, "-d", "500ms", "--cpu", "--cli", "--json", f"{d}/a.json", "--html",
                             f"{d}/a.html", "--collapsed", f"{d}/a.collapsed", "--speedscope", f"{d}/a.speedscope.json")
        self.assertIn("cpu_shares.py", run.out)
        self.assertNotIn("\x1b", run.out)
        for name in ("a.json", "a.html", "a.collapsed", "a.speedscope.json"):
            self.assertIn(f"{d}/{name}", run.err)
        self.assertEqual(sorted(os.listdir(d)), ["a.collapsed", "a.html", "a.json", "a.speedscope.json"])
        with open(f"{d}/a.json", encoding="utf-8") as file:
            profile = json.load(file)
        with open(f"{d}/a.collapsed", encoding="utf-8") as file:
            samples = sum(int(line.rsplit(" ", 1)[1]) for line in file)
        self.assertEqual(samples, profile["totals"]["cpu_samples"])

        again = self.memattach("report", f"{d}/a.json")
        self.assertEqual(again.out, run.out)
        collapsed = self.memattach("report", f"{d}/a.json", "--collapsed", "-")
        with open(f"{d}/a.collapsed", encoding="utf-8") as file:
            self.assertEqual(collapsed.out, file.read())
        wrong = self.memattach("report", f"{d}/a.json", "--collapsed", "-", "--metric", "live", code=2)
        self.assertIn("no 'live'", wrong.err)

    def test_quiet_says_nothing(self):
        target = self.start_any("cpu_shares.py")
        run = self.memattach("-p", target.pid, "-d", "200ms", "--cpu", "--json", "-", "-q")
        self.assertEqual(run.err, "")
        self.assertTrue(run.json)

    def on_terminal(self, *args, env=None):
        """What memattach writes to a terminal of 80 columns, and its exit code."""
        master, slave = pty.openpty()
        os.set_blocking(master, True)
        process = subprocess.Popen(["sh", "-c", 'stty cols 80 rows 24; exec "$@"', "-", self.binary, *map(str, args)],
                                   stdin=slave, stdout=slave, stderr=slave,
                                   env={**os.environ, "TERM": "xterm-256color", **(env or {})})
        os.close(slave)
        text = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the last one has closed it
                break
            if not data:
                break
            text += data
        os.close(master)
        return process.wait(60), text.decode(errors="replace").replace("\r\n", "\n")

    def test_a_terminal_gets_colours_and_progress_and_whole_lines(self):
        target = self.start_any("cpu_shares.py")
        code, text = self.on_terminal("-p", target.pid, "-d", "500ms", "--cpu")
        self.assertEqual(code, 0)
        self.assertIn("\x1b[K", text)  # the progress line
        self.assertRegex(text, r"\x1b\[[0-9;]*m")
        for args, env in ((["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})):
            with self.subTest(args=args, env=env):
                code, text = self.on_terminal("-p", target.pid, "-d", "200ms", "--cpu", *args, env=env)
                self.assertEqual(code, 0)
                self.assertNotRegex(text, r"\x1b\[[0-9;]*m")
        code, text = self.on_terminal("-p", target.pid, "-d", "200ms", "--cpu", "-q")
        self.assertNotIn("\x1b[K", text)

    def test_a_started_command_is_as_if_alone(self):
        script = self.script(
            "import signal, sys\n"
            "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
            "text = sys.stdin.read()\n"
            "end = __import__('time').process_time() + 0.3\n"
            "while __import__('time').process_time() < end: sum(range(1000))\n"
            "print('out', text, sys.argv[1:])\n"
            "print('err', file=sys.stderr)\n"
            "sys.exit(7)\n")
        d = self.directory()
        run = self.memattach("--cpu", "-q", "--json", f"{d}/p.json", "--", sys.executable, script, "--", "-p", "1",
                             code=7, stdin=self.file("hello"))
        self.assertEqual(run.out, "out hello ['--', '-p', '1']\n")
        self.assertEqual(run.err, "err\n")
        with open(f"{d}/p.json", encoding="utf-8") as file:
            self.assertGreater(json.load(file)["totals"]["cpu_samples"], 0)

    def test_a_started_commands_death_is_passed_on(self):
        script = self.script("import os, signal, time\n"
                             "end = time.process_time() + 0.2\n"
                             "while time.process_time() < end: pass\n"
                             "os.kill(os.getpid(), signal.SIGKILL)\n")
        d = self.directory()
        run = self.memattach("--cpu", "--json", f"{d}/p.json", "--", sys.executable, script, code=None)
        self.assertEqual(run.code, 128 + signal.SIGKILL)
        self.assertTrue(os.path.exists(f"{d}/p.json"))

    def test_a_command_goes_on_after_its_profile(self):
        script = self.script("import time\nend = time.process_time() + 1.5\n"
                             "while time.process_time() < end: pass\nprint('finished')\n")
        d = self.directory()
        run = self.memattach("--cpu", "-d", "200ms", "--json", f"{d}/p.json", "--", sys.executable, script)
        self.assertEqual(run.out, "finished\n")
        with open(f"{d}/p.json", encoding="utf-8") as file:
            self.assertLess(json.load(file)["session"]["duration_s"], 1.5)

    def test_a_configuration_file(self):
        target = self.start_any("cpu_shares.py")
        d = self.directory()
        with open(f"{d}/memattach.toml", "w", encoding="utf-8") as file:
            file.write(f'duration = "200ms"\ncpu = true\nquiet = true\njson = "{d}/p.json"\n')
        run = self.memattach("-p", target.pid, "--config", f"{d}/memattach.toml")
        self.assertEqual((run.out, run.err), ("", ""))
        self.assertEqual(os.listdir(d).count("p.json"), 1)

    # -- helpers

    def script(self, text):
        path = f"{self.directory()}/script.py"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def file(self, text):
        path = f"{self.directory()}/input"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        opened = open(path, encoding="utf-8")
        self.addCleanup(opened.close)
        return opened


if __name__ == "__main__":
    main()
