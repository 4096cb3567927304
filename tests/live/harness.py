"""Live tests: memattach against real Python processes of every version on this machine.

A live test is a file tests/live/test_*.py, found by ctest (name live.<file's name without test_>, label `live`) and run
by any python3 from 3.9 on, with nothing installed. To run one by hand:

    MEMATTACH=build/dev/memattach python3 tests/live/test_smoke.py -v [-k 3_8]

The shape of one:

    from harness import LiveTest, each_python, main

    class CpuShares(LiveTest):
        @each_python()                              # one test for each CPython 3.8+ found; see pythons()
        def test_shares(self, python):
            target = self.start(python, "cpu_shares.py", "3")      # fixtures/cpu_shares.py, started and "ready"
            profile = self.profile(target, "-d", "2s", "--cpu")    # runs memattach, wants exit 0, parses --json -
            line = self.line(profile, target, "heavy")             # the row of the fixture's `# line: heavy`
            self.assertAlmostEqual(line["cpu_pct"], 75, delta=10)
        # After each test every target that was started is checked to be unharmed, is asked to finish, and must
        # finish with "ok": true and exit code 0. Pass expect=... to start() where the test itself ends it.

    if __name__ == "__main__":
        main()

Rules: handshakes, never sleeps; a skip names its reason (self.skipTest); no timing is asserted. Whatever a test starts
through the harness is ended by it. Comment lines at the top of a test file steer ctest:

    # labels: faults smoke       more ctest labels than `live`
    # timeout: 600               seconds for the whole file (default 300)
    # serial                     not beside other tests

Fixtures (fixtures/*.py) speak through fixtures/handshake.py; see there. A fixture is copied beside handshake.py into a
directory that the target can see, also inside another root.

Environment: MEMATTACH (the binary), MEMATTACH_TEST_CHROOTS (colon-separated roots with Pythons in them; needs root),
MEMATTACH_TEST_PYTHONS (colon-separated executables of further Pythons, as free-threaded builds),
MEMATTACH_LIVE_REPORT (a directory: what ran and what was skipped is written there as JSON for tools/test), MEMATTACH_FAULTS
(how often fault-injection tests repeat; see faults()).
"""

import ctypes
import functools
import glob
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = TOP / "fixtures"
MEMATTACH = os.environ.get("MEMATTACH", str(TOP / "build/dev/memattach"))

# What a CI run must have tested; on another machine what is missing is only named.
REQUIRED = ["pyenv 3.8", "pyenv 3.9", "pyenv 3.10", "pyenv 3.11", "pyenv 3.12", "pyenv 3.13", "system 3.11"]


def faults(default):
    """How often a fault is injected: MEMATTACH_FAULTS where it is set (tools/test --faults N), else `default`."""
    return int(os.environ.get("MEMATTACH_FAULTS") or default)


class Python:
    """A CPython on this machine. `kind` is "pyenv", "system", the name of a chroot's directory, or, of one that
    MEMATTACH_TEST_PYTHONS names, that of the directory that it is installed in."""

    def __init__(self, path, version, kind, root="", free_threaded=False):
        self.path = path  # inside root
        self.version = version  # (3, 11, 2)
        self.kind = kind
        self.root = root
        self.free_threaded = free_threaded

    @property
    def minor(self):
        return self.version[:2]

    def __str__(self):
        return f"{self.kind} {'.'.join(map(str, self.version))}{'t' if self.free_threaded else ''}"

    @property
    def id(self):
        return re.sub(r"\W", "_", str(self))


_ASK = (
    "import platform, sys, sysconfig;"
    "print('%s %d %d %d %d' % ((platform.python_implementation(),) + tuple(sys.version_info[:3])"
    " + (bool(sysconfig.get_config_var('Py_GIL_DISABLED')),)))"
)


def _ask(path, kind, root=""):
    try:
        said = subprocess.run(
            [path, "-c", _ASK], capture_output=True, text=True, timeout=60, preexec_fn=_entering(root)
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    if len(said) != 5 or said[0] != "CPython":
        return None
    return Python(path, tuple(map(int, said[1:4])), kind, root, said[4] == "1")


@functools.lru_cache(None)
def _all_pythons():
    found = []
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for path in glob.glob(f"{pyenv}/versions/*/bin/python"):
        if os.access(path, os.X_OK):
            found.append(_ask(path, "pyenv"))
    for path in glob.glob("/usr/bin/python3.*"):
        if re.search(r"/python3\.\d+t?$", path):
            found.append(_ask(path, "system"))
    for path in filter(None, os.environ.get("MEMATTACH_TEST_PYTHONS", "").split(":")):
        # One that was asked for and isn't there, or doesn't run, is no reason to test less without a word.
        given = _ask(path, os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(path)))))
        if given is None:
            sys.exit(f"MEMATTACH_TEST_PYTHONS: {path} is no CPython that runs")
        found.append(given)
    for root in filter(None, os.environ.get("MEMATTACH_TEST_CHROOTS", "").split(":")):
        for path in glob.glob(f"{root}/usr/bin/python3.*") + glob.glob(f"{root}/usr/local/bin/python3.*"):
            if re.search(r"/python3\.\d+t?$", path) and os.geteuid() == 0:
                found.append(_ask(path[len(root) :], os.path.basename(root.rstrip("/")), root))
    return sorted(filter(None, found), key=lambda p: (p.version, p.kind, p.free_threaded))


def pythons(minimum=(3, 8), maximum=(3, 99), kinds=None, free_threaded=None):
    """Every CPython found: pyenv's ($PYENV_ROOT or ~/.pyenv), /usr/bin/python3.*, and those of MEMATTACH_TEST_PYTHONS and
    MEMATTACH_TEST_CHROOTS.
    `maximum` is inclusive. `kinds` restricts to some kinds; ("host",) leaves the chroots out. `free_threaded` True or False:
    such builds alone, or none."""
    chosen = [p for p in _all_pythons() if minimum <= p.minor <= maximum]
    if free_threaded is not None:
        chosen = [p for p in chosen if p.free_threaded == free_threaded]
    if kinds == ("host",):
        return [p for p in chosen if not p.root]
    return [p for p in chosen if not kinds or p.kind in kinds]


def missing_pythons(names=None):
    """Those of REQUIRED that aren't on this machine (or not among `names`, as str(Python) gives them)."""
    have = [str(p) for p in pythons()] if names is None else names
    return [r for r in REQUIRED if not any(re.match(re.escape(r) + r"(\.\d+)?$", name) for name in have)]


def each_python(**which):
    """Marks a test method (self, python): it becomes one test for each of pythons(**which)."""

    def mark(method):
        method.each_python = which
        return method

    return mark


def _entering(root="", stopped_signals=()):
    """What a started target does before exec: enter another root, and allow memattach (a sibling here, not a parent) to
    look at it where yama asks for that."""

    def enter():
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
        if root:
            os.chroot(root)
            os.chdir("/")

    return enter


def _status(pid, tid):
    with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


class Mapping:
    def __init__(self, line):
        fields = line.rstrip("\n").split(" ", 5)
        self.start, self.end = (int(x, 16) for x in fields[0].split("-"))
        self.perms = fields[1]
        self.offset = int(fields[2], 16)
        self.inode = int(fields[4])
        self.path = fields[5].strip() if len(fields) > 5 else ""


def executable_mappings(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        return [m for m in map(Mapping, file) if "x" in m.perms]


def text_differences(pid):
    """["libc.so.6+0x9a1f0: cc for f3", …]: where the executable file mappings of a process differ from their files."""
    differences = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapping in executable_mappings(pid):
            if mapping.inode == 0:
                continue
            source = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
            if not os.access(source, os.R_OK):
                source = f"/proc/{pid}/root{mapping.path}"
            with open(source, "rb") as file:
                file.seek(mapping.offset)
                want = file.read(mapping.end - mapping.start)
            have = os.pread(memory.fileno(), len(want), mapping.start)
            while len(have) < len(want):
                more = os.pread(memory.fileno(), len(want) - len(have), mapping.start + len(have))
                if not more:
                    break
                have += more
            if have == want:
                continue
            for i, (a, b) in enumerate(zip(have, want)):
                if a != b:
                    name = os.path.basename(mapping.path)
                    differences.append(f"{name}+{mapping.offset + i:#x}: {a:02x} for {b:02x}")
    return differences


def wounds(pid, stopped=False):
    """What is wrong with a process that must be as if memattach had never been there; empty where nothing is. `stopped`:
    the test itself stopped it with SIGSTOP."""
    found = []
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return [f"process {pid} is gone"]
    for tid in tids:
        try:
            status = _status(pid, tid)
        except OSError:
            continue  # ended meanwhile, as threads do
        state = status.get("State", "?")
        if state[0] in "t" or (state[0] == "T" and not stopped):
            found.append(f"thread {tid} is stopped: {state}")
        if state[0] in "ZX" and tid == str(pid):
            found.append(f"process {pid} is dead: {state}")
        if status.get("TracerPid") != "0":
            found.append(f"thread {tid} is traced by {status.get('TracerPid')}")
        for field in ("SigPnd", "ShdPnd"):
            if int(status.get(field, "0"), 16) & (1 << (signal.SIGTRAP - 1)):
                found.append(f"thread {tid} has a pending SIGTRAP ({field})")
    try:
        found += [f"text changed: {d}" for d in text_differences(pid)]
    except OSError as error:
        found.append(f"the text of {pid} can't be compared: {error}")
    return found


class Target:
    """A process that a test looks at. `truth` is the fixture's first line of JSON."""

    def __init__(self, process, python, source, expect):
        self.process = process
        self.pid = process.pid
        self.python = python
        self.source = source  # the fixture's path as the target knows it
        self.expect = expect
        self.truth = {}
        self.finished = False
        self.result = None
        self.stopped = False
        self._buffer = b""

    @property
    def lines(self):
        return self.truth["lines"]

    def send(self, order):
        self.process.stdin.write(order.encode() + b"\n")
        self.process.stdin.flush()

    def read_line(self, timeout=60):
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise AssertionError(f"target {self.pid} ({self.python}) said nothing for {timeout} s")
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    code = self.process.wait()
                    raise AssertionError(f"target {self.pid} ({self.python}) ended with {code}: {self.errors()}")
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def read_json(self, timeout=60):
        return json.loads(self.read_line(timeout))

    def wait_until_it_listens(self, timeout=60):
        """Until its main thread is blocked in read() of what the test sends."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with open(f"/proc/{self.pid}/task/{self.pid}/syscall", encoding="ascii") as file:
                if file.read().startswith("0 0x0 "):
                    return
            time.sleep(0.001)
        raise AssertionError(f"target {self.pid} ({self.python}) never listened")

    def wait_until_blocked(self, tid, timeout=60):
        """Until a thread is in a system call that isn't the wait for the GIL."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with open(f"/proc/{self.pid}/task/{tid}/syscall", encoding="ascii") as file:
                if file.read().split()[0] not in ("running", "202", "-1"):
                    return
            time.sleep(0.001)
        raise AssertionError(f"thread {tid} of {self.pid} ({self.python}) never blocked")

    def waited_for_cpu_s(self):
        """How long its threads that are there have been runnable without a CPU, all of them together."""
        waited_ns = 0
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            with open(f"/proc/{self.pid}/task/{tid}/schedstat", encoding="ascii") as file:
                waited_ns += int(file.read().split()[1])
        return waited_ns / 1e9

    def errors(self):
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-2000:]

    def finish(self, timeout=60):
        """Asks it to finish; returns its last words, {"ok": True, …}."""
        self.send("finish")
        self.result = self.read_json(timeout)
        self.process.stdin.close()
        self.code = self.process.wait(timeout)
        self.finished = True
        return self.result


class Run:
    """What came of running memattach."""

    def __init__(self, args, code, out, err):
        self.args, self.code, self.out, self.err = args, code, out, err

    @property
    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return f"$ memattach {' '.join(self.args)}\n{self.out[-3000:]}{self.err[-3000:]}exit code {self.code}"


class Running:
    """memattach, started and not yet waited for."""

    def __init__(self, args, process):
        self.args, self.process = args, process
        self._err = []
        self._attached = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self._err.append(line)
            if line.startswith("memattach: profiling"):
                self._attached.set()
        self._attached.set()

    def wait_attached(self, timeout=60):
        """Until it says that it is looking at the target (it prints "memattach: profiling …" on stderr; no --quiet)."""
        if not self._attached.wait(timeout) or self.process.poll() is not None:
            raise AssertionError(f"memattach never attached: {''.join(self._err)}")

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=120):
        out, _ = _communicate(self.process, timeout)
        self._reader.join(10)
        return Run(self.args, self.process.returncode, out, "".join(self._err))


def _communicate(process, timeout):
    pieces = []
    reader = threading.Thread(target=lambda: pieces.append(process.stdout.read()), daemon=True)
    reader.start()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"memattach didn't end within {timeout} s: {process.args}") from None
    reader.join(10)
    return "".join(pieces), None


class LiveTest(unittest.TestCase):
    """Base of live tests: starts targets, runs memattach, and checks after every test that no target was harmed."""

    maxDiff = None
    binary = MEMATTACH

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            which = getattr(method, "each_python", None)
            if which is None:
                continue
            delattr(cls, name)
            for python in pythons(**which):
                setattr(cls, f"{name}__{python.id}", _bind(method, python))

    def setUp(self):
        self._targets = []
        self._directories = []

    def run(self, result=None):
        # What a target has suffered belongs to the test that did it, so the check is part of the test and not of
        # tearDown: a failure there would be an error of the harness.
        name = self._testMethodName
        test = getattr(self, name)

        def checked():
            try:
                test()
                for target in self._targets:
                    self.assert_unharmed(target)
            finally:
                self._end_all()

        setattr(self, name, checked)
        return super().run(result)

    def _end_all(self):
        for target in self._targets:
            if target.process.poll() is None:
                os.killpg(target.pid, signal.SIGKILL)
                target.process.wait()
            for stream in (target.process.stdin, target.process.stdout):
                try:
                    stream.close()
                except OSError:
                    pass
            target._stderr.close()
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    def directory(self, root=""):
        """A fresh directory, removed after the test; inside `root` its path there is returned."""
        parent = f"{root}/tmp" if root else None
        path = tempfile.mkdtemp(prefix="memattach-test-", dir=parent)
        os.chmod(path, 0o755)
        self._directories.append(path)
        return path[len(root) :]

    @staticmethod
    def copy_fixture(name, directory):
        shutil.copy(FIXTURES / name, directory)

    @staticmethod
    def read_profile(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    # -- targets

    def start(self, python, fixture, *args, expect="finish", env=None, options=(), wrap=(), ready=True):
        """Starts a fixture (a file of fixtures/, or a path) with `python` and waits until it is ready.

        expect   "finish": it must be unharmed, finish when asked, say ok and exit with 0. Or an exit code (negative: a
                 signal) that the test brings about itself: then only that is checked. None: nothing is.
        env      more environment variables        options  for the interpreter, as ["-X", "utf8"]
        wrap     a command to put in front, as ["setpriv", "--reuid=nobody", …]
        ready    False: don't wait for the handshake (a program of its own kind)
        """
        directory = self.directory(python.root)
        source = FIXTURES / fixture if not os.path.isabs(str(fixture)) else pathlib.Path(fixture)
        for file in {source, FIXTURES / "handshake.py"}:
            shutil.copy(file, f"{python.root}{directory}")
        path = f"{directory}/{source.name}"
        command = [*wrap, python.path, *options, path, *map(str, args)]
        return self._start(command, python, path, expect, env, ready)

    def start_any(self, fixture, *args, **kwargs):
        """start() with a Python of this machine, where it doesn't matter which: the one that runs the test."""
        return self.start(Python(sys.executable, sys.version_info[:3], "own"), fixture, *args, **kwargs)

    def wait_for_exec(self, target, name):
        """Until a command started with start_command() runs the program `name`."""
        while os.path.basename(os.readlink(f"/proc/{target.pid}/exe")) != name:
            self.assertIsNone(target.process.poll())
            time.sleep(0.001)

    def start_command(self, command, *, python=None, expect=None, env=None, ready=False):
        """Starts any command as a target."""
        return self._start([str(c) for c in command], python, "", expect, env, ready)

    def _start(self, command, python, source, expect, env, ready):
        full_env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MEMATTACH"))}
        full_env.update({"PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"})
        full_env.update(env or {})
        errors = tempfile.TemporaryFile()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=full_env,
            bufsize=0,
            start_new_session=True,
            preexec_fn=_entering(python.root if python else ""),
        )
        target = Target(process, python, source, expect)
        target._stderr = errors
        self._targets.append(target)
        if ready:
            target.truth = target.read_json()
            self.assertEqual(target.read_line(), "ready")
        return target

    def assert_unharmed(self, target, stopped=False):
        """The target runs, its text is its files' text, nobody traces it, no thread is stopped, no SIGTRAP is pending; then
        it finishes with the right result. Done for every target at the end of the test; a test may call it earlier."""
        if target.finished or target.expect is None:
            return
        if target.expect != "finish":
            self.assertEqual(target.process.wait(60), target.expect, target.errors())
            return
        if target.process.poll() is not None:
            self.fail(f"target {target.pid} ({target.python}) ended with {target.process.returncode}: {target.errors()}")
        found = wounds(target.pid, stopped)
        self.assertEqual(found, [], f"target {target.pid} ({target.python}) was harmed")
        if stopped:
            return
        result = target.finish()
        self.assertTrue(result["ok"], f"target {target.pid} ({target.python}) came to a wrong result: {result}")
        self.assertEqual(target.code, 0, target.errors())

    # -- memattach

    def memattach(self, *args, code=0, timeout=120, env=None, stdin=subprocess.DEVNULL, wrap=()):
        """Runs memattach and wants exit code `code` (None: any). Returns a Run with code, out, err and json."""
        args = [str(a) for a in args]
        run = self.memattach_start(*args, env=env, stdin=stdin, wrap=wrap).wait(timeout)
        if code is not None:
            self.assertEqual(run.code, code, f"\n{run}")
        return run

    def memattach_start(self, *args, env=None, stdin=subprocess.DEVNULL, wrap=()):
        """Starts memattach and returns a Running: wait_attached(), signal(n), wait()."""
        args = [str(a) for a in args]
        process = subprocess.Popen(
            [*wrap, MEMATTACH, *args],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
        )

        def end():
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
            process.stderr.close()

        self.addCleanup(end)
        return Running(args, process)

    def profile(self, target, *args, code=0, timeout=120):
        """Profiles a target; returns the profile as memattach.profile/1 JSON."""
        run = self.memattach("-p", target.pid, "--json", "-", *args, code=code, timeout=timeout)
        return run.json

    def line(self, profile, target, name):
        """The row of the fixture's line marked `# line: name`; fails where the profile has none."""
        number = target.lines[name]
        row = self.find_line(profile, target.source, number)
        if row is None:
            have = [(f["path"], r["line"]) for f in profile["files"] for r in f["lines"]]
            self.fail(f"no row for {name} ({target.source}:{number}) among {have[:40]}")
        return row

    @staticmethod
    def find_line(profile, path, number):
        for file in profile["files"]:
            if file["path"] == path:
                for row in file["lines"]:
                    if row["line"] == number:
                        return row
        return None

    def assert_error(self, run, *words):
        """memattach refused: exit code 2, nothing on stdout, one line on stderr that has all these words."""
        self.assertEqual(run.code, 2, f"\n{run}")
        self.assertEqual(run.out, "", f"\n{run}")
        lines = run.err.rstrip("\n").split("\n")
        self.assertEqual(len(lines), 1, f"\n{run}")
        self.assertTrue(lines[0].startswith("memattach: "), f"\n{run}")
        for word in words:
            self.assertIn(str(word), lines[0])


def _bind(method, python):
    @functools.wraps(method)
    def test(self):
        return method(self, python)

    test.python = python
    del test.each_python
    return test


class _Result(unittest.TextTestResult):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ran = {}

    def addSuccess(self, test):
        super().addSuccess(test)
        # The method was replaced on the instance by the checked one: the class has the one that knows its Python.
        python = getattr(getattr(type(test), test._testMethodName), "python", None)
        name = str(python) if python else "-"
        self.ran[name] = self.ran.get(name, 0) + 1


def main():
    """Runs the tests of the calling file; exit code 77 (ctest: skipped) where every one was skipped."""
    if not os.access(MEMATTACH, os.X_OK):
        sys.exit(f"{MEMATTACH} is not there: build it, or set MEMATTACH")
    # A shell's background job has SIGINT ignored, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = unittest.main(
        exit=False, testRunner=unittest.TextTestRunner(resultclass=_Result, verbosity=2, stream=sys.stdout)
    )
    result = program.result
    report = os.environ.get("MEMATTACH_LIVE_REPORT")
    if report:
        os.makedirs(report, exist_ok=True)
        name = pathlib.Path(sys.argv[0]).stem
        with open(f"{report}/{name}.json", "w", encoding="utf-8") as file:
            skipped = [[str(test), why] for test, why in result.skipped]
            json.dump({"ran": result.ran, "skipped": skipped, "tests": result.testsRun}, file)
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if len(result.skipped) == result.testsRun else 0)
