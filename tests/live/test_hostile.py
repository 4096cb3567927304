"""A target that forges its own interpreter's structures is read in bounded time and memory, and nothing crashes."""

import json
import os
import re
import subprocess

from harness import MEMATTACH, LiveTest, each_python, main
from test_stacks import Reader

MAX_RSS_MB = 100


def peak_rss_mb(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) / 1024


class Hostile(LiveTest):
    @each_python()
    def test_forged_structures(self, python):
        target = self.start(python, "forger.py")
        reader = Reader(self, target.pid)

        def victim(of=reader):
            return next(t for t in of.read() if t["tid"] == target.truth["victim"])

        names = ["innermost", "inner", "victim"]
        for what in target.truth["forgeries"]:
            honest = victim()
            self.assertEqual([f[0].split(".")[-1] for f in honest["frames"][:3]], names, what)
            self.assertEqual(honest["frames"][0][2], target.lines["waiting"])
            target.send(what)
            self.assertEqual(target.read_json()["done"], what)
            # One that knows this process, and one that sees it like this from the start.
            newcomer = Reader(self, target.pid)
            for _ in range(20):
                self.assertLessEqual(len(victim()["frames"]), 1026)
                forged = victim(newcomer)
                self.assertLessEqual(len(forged["frames"]), 1026)
            self.assertLess(peak_rss_mb(newcomer.process.pid), MAX_RSS_MB)
            newcomer.end()
            unknown = any(frame[0] == "[unknown frame]" for frame in forged["frames"])
            if what in ("name_of_1_gb", "line_table_of_2_to_the_62"):
                # What bytes there are behind the claim may be told; the line can't be.
                self.assertGreaterEqual(len(forged["frames"]), 3)
            else:
                self.assertTrue(unknown or forged["truncated"], f"{what}: {forged}")
            for name, _, _ in forged["frames"]:
                self.assertLess(len(name), 5000)
            target.send("restore")
            target.read_json()
        self.assertEqual([f[0].split(".")[-1] for f in victim()["frames"][:3]], names)
        self.assertLess(peak_rss_mb(reader.process.pid), MAX_RSS_MB)


def raw_controls(data):
    """Control characters (C0 but the new line, DEL, C1), bidirectional overrides and what isn't UTF-8 in some output."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return [str(error)]
    return re.findall("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]", text)


class Names(LiveTest):
    """What a target calls its functions, files, threads and itself never reaches the terminal as it is."""

    def run_bytes(self, *args):
        run = subprocess.run([MEMATTACH, *map(str, args)], capture_output=True, timeout=120)
        return run.returncode, run.stdout, run.stderr

    @each_python()
    def test_names_that_want_the_terminal(self, python):
        target = self.start(python, "hostile_names.py", "\x1b]0;taken\x07\x1b[2J")
        directory = self.directory()
        outputs = {name: f"{directory}/{name}" for name in ("json", "html", "speedscope", "collapsed")}
        files = [f"--{name}={path}" for name, path in outputs.items()]
        pid = ("-p", target.pid)
        runs = [
            (*pid, "-d", "1", "--cpu", "-r", "500", "-t", "--cli", *files),
            (*pid, "-d", "1", "--cpu", "-r", "500", "--profile-all", "--reduced-profile", "--cli", "--no-color"),
            ("dump", *pid),
            ("dump", *pid, "-n"),
            ("doctor", *pid),
            ("report", outputs["json"]),
        ]
        shown = b""
        for args in runs:
            code, out, err = self.run_bytes(*args)
            self.assertEqual(code, 0, err)
            self.assertEqual(raw_controls(out + err), [], f"{args}: {out} {err}")
            shown += out + err
        # It is shown, in a form that does nothing; the thread by its name, the process by its command line.
        for text in ("burn\\x1b[31m", "evil\\x1b[31m", "t\\x1b[31m", ".py \\x1b]0;taken\\x07"):
            self.assertIn(text.encode(), shown)
        with open(outputs["collapsed"], "rb") as file:
            self.assertEqual(raw_controls(file.read()), [])
        # Markup has escapes of its own; what counts is that it can't end early.
        with open(outputs["html"], "rb") as file:
            self.assertNotIn(b"\x1b", file.read())
        for name in ("json", "speedscope"):
            with open(outputs[name], "rb") as file:
                data = file.read()
            self.assertEqual(re.findall(rb"[\x00-\x09\x0b-\x1f]", data), [])
            outputs[name] = json.loads(data)
        for frames in (outputs["json"]["functions"], outputs["speedscope"]["shared"]["frames"]):
            self.assertIn(target.truth["name"], [f["name"] for f in frames])
        _, out, _ = self.run_bytes("dump", *pid, "--json")
        frames = [f for t in json.loads(out)["threads"] for f in t["frames"]]
        found = [f for f in frames if f["function"] == target.truth["name"]]
        self.assertTrue(found and {f["line"] for f in found} <= {3, 4}, frames)

    def test_names_in_errors(self):
        """What was given on the command line, and what other processes are called, where several could be meant."""
        evil = "\x1b]0;taken\x07\x9b2J\u202e\r\n"
        target = self.start_any("hostile_names.py", "\x1b[31m")
        for args in (
            ("-p", target.pid, "-d", "1", "--html", f"/nowhere/{evil}/x.html"),
            ("-p", target.pid, "-d", f"1{evil}"),
            ("-p", f"{evil}"),
            ("-p", target.pid, f"--{evil}"),
            ("-p", target.pid, "--config", f"/nowhere/{evil}"),
            ("report", f"/nowhere/{evil}"),
            ("--", f"/nowhere/{evil}"),
        ):
            code, out, err = self.run_bytes(*args)
            self.assertEqual((code, out), (2, b""), f"{args}: {err}")
            self.assertEqual(raw_controls(err), [], f"{args}: {err}")
            self.assertEqual(err.count(b"\n"), 1, f"{args}: {err}")
        os.kill(self.start_any("hostile_names.py", "\x1b[31m").pid, 0)  # a second one, so that it can't be told which
        code, out, err = self.run_bytes("-d", "1")
        self.assertEqual((code, out), (2, b""), err)
        self.assertEqual(raw_controls(err), [], err)
        self.assertIn(b"\\x1b[31m", err)


if __name__ == "__main__":
    main()
