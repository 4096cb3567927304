"""Finding the interpreter wherever it is: each placement of the file and of the process, with the target's own word as the
truth. show_runtime (tests/helpers) prints what python::find_runtime says."""
# timeout: 600

import glob
import os
import pathlib
import shutil
import subprocess

from harness import FIXTURES, MEMATTACH, LiveTest, Python, each_python, main, pythons

SHOW = str(pathlib.Path(MEMATTACH).resolve().parent / "show_runtime")
NOBODY = 65534
IS_ROOT = os.geteuid() == 0


def prefix(python):
    return pathlib.Path(python.path).parent.parent


def library(python):
    found = glob.glob(f"{prefix(python)}/lib/libpython{python.version[0]}.{python.version[1]}*.so.1.0")
    return found[0] if found else None


class FinderTest(LiveTest):
    def setUp(self):
        super().setUp()
        self.cache = self.directory()

    def show(self, pid, *, wait_ms=0, wrap=()):
        """What show_runtime says of a process, as a dictionary."""
        run = self.show_run(pid, wait_ms=wait_ms, wrap=wrap)
        self.assertEqual(run.returncode, 0, run.stderr)
        return dict(line.split(" ", 1) for line in run.stdout.splitlines())

    def show_run(self, pid, *, wait_ms=0, wrap=()):
        return subprocess.run(
            [*wrap, SHOW, str(pid), str(wait_ms)],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": self.cache},
            check=False,
        )

    def refusal(self, pid, *words, wait_ms=0, wrap=()):
        """It refuses in one line that has these words."""
        run = self.show_run(pid, wait_ms=wait_ms, wrap=wrap)
        self.assertEqual((run.returncode, run.stdout), (2, ""), run.stderr)
        self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
        for word in words:
            self.assertIn(str(word), run.stderr)
        return run.stderr

    def check(self, said, target):
        """It is what the target says of itself."""
        self.assertEqual(said["version"], target.truth["version"])
        self.assertEqual(int(said["hex"], 16), target.truth["hex"])
        self.assertEqual(said["free_threaded"] == "true", target.truth["free_threaded"])
        if target.truth["runtime"] is not None:
            self.assertEqual(int(said["address"], 16), target.truth["runtime"])

    def layout(self, said):
        return {k: v for k, v in said.items() if k.startswith("layout.")}

    # A copy of an interpreter and its library in a directory of its own.
    def copy_of(self, python, strip=False):
        directory = pathlib.Path(self.directory())
        source = library(python)
        shutil.copy(os.path.realpath(python.path), directory / "python3")
        copied = [directory / "python3"]
        if source:
            shutil.copy(source, directory)
            copied.append(directory / os.path.basename(source))
        if strip:
            if not shutil.which("strip"):
                self.skipTest("no strip (binutils)")
            for file in copied:
                subprocess.run(["strip", "--strip-all", file], check=True)
        copy = Python(str(directory / "python3"), python.version, python.kind)
        env = {"LD_LIBRARY_PATH": str(directory), "PYTHONHOME": str(prefix(python))}
        return copy, env, copied


    # A C program that embeds Python, told step by step what to do.
    def build(self, python, *, static=False, options=()):
        """Compiles fixtures/embedded.c against this Python."""
        if not shutil.which("cc"):
            self.skipTest("no C compiler")
        version = f"python3.{python.version[1]}"
        include = prefix(python) / "include" / version
        if not include.exists():
            self.skipTest(f"{python} has no headers")
        program = pathlib.Path(self.directory()) / "embedded"
        command = ["cc", f"-I{include}", FIXTURES / "embedded.c", "-o", program]
        if static:
            archives = glob.glob(f"{prefix(python)}/lib/{version}/config-*/lib{version}.a")
            if not archives:
                self.skipTest(f"{python} has no static library")
            command += ["-Wl,--export-dynamic", archives[0], "-lpthread", "-ldl", "-lutil", "-lm", *options]
        else:
            command += [f"-L{prefix(python)}/lib", f"-l{version}", f"-Wl,-rpath,{prefix(python)}/lib", *options]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            self.skipTest(f"can't link with {python}: {made.stderr[-300:]}")
        return program

    def start_embedded(self, program, python, *, env=None, wrap=()):
        env = {"PYTHONHOME": str(prefix(python)), "EMBEDDED_PATH": str(FIXTURES), **(env or {})}
        target = self.start_command([*wrap, program, FIXTURES / "waiting.py"], env=env)
        self.assertEqual(target.read_line(), "up")
        return target

    def step(self, target, word):
        target.send(word)
        self.assertEqual(target.read_line(), word)

    def run_script(self, target):
        target.send("run")
        target.truth = target.read_json()
        self.assertEqual(target.read_line(), "ready")
        target.expect = "finish"


class EachVersion(FinderTest):
    @each_python()
    def test_as_installed(self, python):
        target = self.start(python, "waiting.py")
        said = self.show(target.pid)
        self.check(said, target)
        if python.version >= (3, 13):
            self.assertEqual(said["source"], "debug_offsets")
        elif python.kind == "pyenv":
            self.assertEqual(said["source"], "dwarf")
            again = self.show(target.pid)
            self.assertEqual(again["source"], "dwarf_cache")
            self.assertEqual(self.layout(again), self.layout(said))
        elif python.kind == "system":
            self.assertIn(said["source"], ("built_in", "dwarf"))
        text = [int(x, 16) for x in said["text"].split("-")]
        self.assertLess(text[0], text[1])
        if python.root:  # named as the target itself would
            self.assertFalse(said["module"].startswith(python.root))

    @each_python(kinds=("pyenv",))
    def test_stripped_library(self, python):
        full = self.show(self.start(python, "waiting.py").pid)
        copy, env, _ = self.copy_of(python, strip=True)
        target = self.start(copy, "waiting.py", env=env)
        said = self.show(target.pid)
        self.check(said, target)
        self.assertTrue(said["module"].startswith(os.path.dirname(copy.path)))
        if python.version < (3, 13):
            # The build id is that of the unstripped file, whose DWARF is in the cache by now; without it the
            # built-in tables give the very same offsets.
            self.assertEqual(said["source"], "dwarf_cache")
            self.cache = self.directory()
            said = self.show(target.pid)
            self.assertEqual(said["source"], "built_in")
            self.assertEqual(self.layout(said), self.layout(full))

    @each_python(kinds=("pyenv",), maximum=(3, 12))
    def test_separate_debug_file(self, python):
        """A stripped library, and its DWARF where a distribution's debug package puts it."""
        if not IS_ROOT or not os.path.isdir("/usr/lib/debug"):
            self.skipTest("needs root and a directory /usr/lib/debug to mount over")
        source = library(python)
        full = self.show(self.start(python, "waiting.py").pid)
        copy, env, _ = self.copy_of(python, strip=True)
        target = self.start(copy, "waiting.py", env=env)
        build_id = full["build_id"]
        script = (
            'mount -t tmpfs none /usr/lib/debug; mkdir -p "/usr/lib/debug/.build-id/$1"; '
            'objcopy --only-keep-debug "$3" "/usr/lib/debug/.build-id/$1/$2.debug"; shift 3; exec "$@"'
        )
        wrap = ["unshare", "--mount", "sh", "-ec", script, "sh", build_id[:2], build_id[2:], source]
        if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("mounting is not allowed here, or there is no objcopy")
        self.cache = self.directory()
        said = self.show(target.pid, wrap=wrap)
        self.check(said, target)
        self.assertEqual(said["source"], "dwarf")
        self.assertEqual(self.layout(said), self.layout(full))

    @each_python(kinds=("pyenv", "system"))
    def test_deleted(self, python):
        copy, env, files = self.copy_of(python)
        target = self.start(copy, "waiting.py", env=env)
        for file in files:
            os.unlink(file)
        self.check(self.show(target.pid), target)
        target.expect = None  # its text can't be compared with files that are gone

    @each_python(kinds=("pyenv", "system"))
    def test_replaced_by_an_upgrade(self, python):
        copy, env, files = self.copy_of(python)
        target = self.start(copy, "waiting.py", env=env)
        for file in files:  # another file, of another build, under the same name
            shutil.copy(SHOW, f"{file}.new")
            os.rename(f"{file}.new", file)
        self.check(self.show(target.pid), target)

    @each_python(kinds=("pyenv", "system"))
    def test_virtual_environment(self, python):
        for how in ("--symlinks", "--copies"):
            directory = self.directory()
            made = subprocess.run(
                [python.path, "-m", "venv", "--without-pip", how, directory], capture_output=True, text=True, check=False
            )
            if made.returncode != 0:
                self.skipTest(f"{python} makes no virtual environment: {made.stderr[-200:]}")
            inside = Python(f"{directory}/bin/python", python.version, python.kind)
            target = self.start(inside, "waiting.py")
            self.check(self.show(target.pid), target)


class Embedded(FinderTest):
    @each_python(kinds=("pyenv",))
    def test_before_during_and_after(self, python):
        target = self.start_embedded(self.build(python), python)
        self.refusal(target.pid, "has not started its Python interpreter")
        self.step(target, "init")
        said = self.show(target.pid)  # initialised, and no Python frame anywhere
        self.assertEqual(said["version"], ".".join(map(str, python.version)))
        self.step(target, "end")
        self.refusal(target.pid, "or has ended it")
        self.step(target, "init")
        self.run_script(target)
        self.check(self.show(target.pid), target)

    @each_python(kinds=("pyenv",))
    def test_linked_statically(self, python):
        program = self.build(python, static=True)
        target = self.start_embedded(program, python)
        self.step(target, "init")
        self.run_script(target)
        said = self.show(target.pid)
        self.check(said, target)
        self.assertEqual(said["module"], str(program))

    @each_python(kinds=("pyenv",), maximum=(3, 12))
    def test_no_symbol_and_no_debug_offsets(self, python):
        """Then _PyRuntime is known by what it looks like, while some thread runs Python code."""
        program = self.build(python, static=True, options=("-Wl,--no-export-dynamic",))
        symbols = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
        truth = [line.split()[0] for line in symbols.splitlines() if line.endswith(" _PyRuntime")]
        # Some versions have a section of that name, which survives strip.
        subprocess.run(["objcopy", "--strip-all", "--rename-section", ".PyRuntime=.other", program], check=True)
        target = self.start_embedded(program, python)
        self.refusal(target.pid, "is not Python")
        self.step(target, "init")
        self.refusal(target.pid, "without a symbol", ".".join(map(str, python.version)))
        target.send("loop")
        self.assertEqual(target.read_line(), "looping")
        said = self.show(target.pid)
        self.assertEqual(said["version"], ".".join(map(str, python.version)))
        self.assertIn("the list of interpreters", said["found_by"])
        bias = int(said["address"], 16) - int(truth[0], 16)
        with open(f"/proc/{target.pid}/maps", encoding="utf-8") as maps:
            self.assertIn(bias, [int(line.split("-")[0], 16) for line in maps if str(program) in line])

    @each_python(kinds=("pyenv",), minimum=(3, 13))
    def test_no_symbol_at_all(self, python):
        program = self.build(python, static=True, options=("-Wl,--no-export-dynamic", "-Wl,--strip-all"))
        renamed = f"{program}-renamed"
        subprocess.run(["objcopy", "--rename-section", ".PyRuntime=.other", program, renamed], check=True)
        for path, how in ((program, "section .PyRuntime"), (renamed, "cookie")):
            target = self.start_embedded(path, python)
            self.step(target, "init")
            said = self.show(target.pid)
            self.assertEqual(said["version"], ".".join(map(str, python.version)))
            self.assertIn(how, said["found_by"])


class OtherPlaces(FinderTest):
    def setUp(self):
        super().setUp()
        if not IS_ROOT:
            self.skipTest("needs root")
        # The oldest stripped one of the machine, else any.
        self.python = (pythons(kinds=("system",)) or pythons(kinds=("pyenv",)))[0]

    def start_below(self, *wrap):
        """Starts waiting.py as a child of a command that stays (unshare --fork); the target's pid is the child's."""
        target = self.start(self.python, "waiting.py", wrap=wrap)
        with open(f"/proc/{target.pid}/task/{target.pid}/children", encoding="ascii") as file:
            return target, int(file.read().split()[0])

    def test_another_pid_namespace(self):
        target, pid = self.start_below("unshare", "--pid", "--fork", "--kill-child")
        self.assertEqual(target.truth["pid"], 1)  # what it calls itself
        self.check(self.show(pid), target)

    def mount_test(self, script):
        """The interpreter's file exists in a mount namespace of its own only; `script` puts it there, in $1."""
        place = self.directory()
        wrap = ["unshare", "--mount", "sh", "-ec", script + '; shift; exec "$@"', "sh", place]
        probe = subprocess.run([*wrap, "true"], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            self.skipTest(f"mounting is not allowed here: {probe.stderr[-200:]}")
        inside = Python(f"{place}/python3", self.python.version, self.python.kind)
        target = self.start(inside, "waiting.py", wrap=wrap, env={"PYTHONHOME": str(prefix(self.python))})
        self.assertFalse(os.path.exists(inside.path))
        said = self.show(target.pid)
        self.check(said, target)
        self.assertEqual(said["module"], inside.path)

    def test_another_mount_namespace(self):
        self.mount_test(f'mount -t tmpfs none "$1"; cp {os.path.realpath(self.python.path)} "$1/python3"')

    def test_overlay_file_system(self):
        self.mount_test(
            'mount -t tmpfs none "$1"; cd "$1"; mkdir lower upper work; '
            f"cp {os.path.realpath(self.python.path)} lower/python3; cd /; "
            'mount -t overlay none -o lowerdir="$1/lower",upperdir="$1/upper",workdir="$1/work" "$1"'
        )

    def test_another_user(self):
        target = self.start(self.python, "waiting.py", wrap=["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"])
        self.check(self.show(target.pid), target)


class Unprivileged(FinderTest):
    """As an ordinary user: without map_files, without CAP_SYS_PTRACE."""

    AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    def setUp(self):
        super().setUp()
        system = pythons(kinds=("system",))
        if not IS_ROOT or not system or not shutil.which("setpriv"):
            self.skipTest("needs root, setpriv and a Python in /usr/bin")
        self.python = system[0]
        tool = pathlib.Path(self.directory()) / "show_runtime"
        shutil.copy(SHOW, tool)
        self.tool = tool

    def show_run(self, pid, *, wait_ms=0, wrap=()):
        return subprocess.run(
            [*self.AS_NOBODY, *wrap, self.tool, str(pid), str(wait_ms)],
            capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": self.cache}, check=False,
        )

    def test_own_process(self):
        target = self.start(self.python, "waiting.py", wrap=self.AS_NOBODY)
        self.check(self.show(target.pid), target)

    def test_own_process_with_its_executable_deleted(self):
        copy, env, files = self.copy_of(self.python)
        target = self.start(copy, "waiting.py", env=env, wrap=self.AS_NOBODY)
        os.unlink(files[0])
        self.check(self.show(target.pid), target)
        target.expect = None

    def test_own_process_with_its_library_deleted(self):
        """Nothing leads to the file; _PyRuntime is found in the dynamic symbols in memory."""
        chosen = [p for p in pythons(kinds=("pyenv",)) if p.minor == self.python.minor and library(p)]
        if not chosen:
            self.skipTest(f"no shared libpython of {self.python.version}")
        # nobody can't read pyenv's standard library; the system's has the same minor version.
        program = self.build(chosen[0])
        _, _, files = self.copy_of(chosen[0])
        env = {"PYTHONHOME": str(prefix(self.python)), "LD_LIBRARY_PATH": str(files[-1].parent)}
        target = self.start_embedded(program, chosen[0], env=env, wrap=self.AS_NOBODY)
        self.step(target, "init")
        os.unlink(files[-1])
        said = self.show(target.pid)
        self.assertEqual(said["version"], ".".join(map(str, chosen[0].version)))
        self.assertIn("in the memory", said["found_by"])

    def test_roots_process(self):
        target = self.start(self.python, "waiting.py")
        self.refusal(target.pid, target.pid, "root (uid 0)", "setcap cap_sys_ptrace+ep")

    def test_user_namespaces(self):
        """Inside one, being root there counts for nothing outside; from outside, one's own is like any process."""
        inside = ["unshare", "--user", "--map-root-user"]
        probe = subprocess.run([*self.AS_NOBODY, *inside, "true"], capture_output=True, check=False)
        if probe.returncode != 0:
            self.skipTest("user namespaces are not allowed here")
        target = self.start(self.python, "waiting.py", wrap=[*self.AS_NOBODY, *inside])
        self.check(self.show(target.pid), target)
        outside = self.start(self.python, "waiting.py", wrap=self.AS_NOBODY)
        self.refusal(outside.pid, "another user namespace", wrap=inside)

    def test_a_process_that_is_not_dumpable(self):
        script = pathlib.Path(self.directory()) / "protected.py"
        script.write_text(
            "import ctypes, handshake\n"
            "ctypes.CDLL(None).prctl(4, 0)\n"  # PR_SET_DUMPABLE
            "target = handshake.Target()\ntarget.wait()\ntarget.finish(ok=True)\n"
        )
        target = self.start(self.python, script, wrap=self.AS_NOBODY)
        self.refusal(target.pid, target.pid, "not dumpable", "sudo")


class Refused(FinderTest):
    def test_not_python(self):
        target = self.start_command(["sleep", "1000"])
        self.refusal(target.pid, target.pid, "sleep 1000", "is not Python")

    def test_no_process(self):
        self.refusal(0x7FFFFFFE, "no process")

    def test_thread(self):
        script = pathlib.Path(self.directory()) / "threaded.py"
        script.write_text(
            "import threading, handshake\n"
            "stop = threading.Event()\nthread = threading.Thread(target=stop.wait)\nthread.start()\n"
            "target = handshake.Target({'tid': thread.native_id})\ntarget.wait()\nstop.set()\ntarget.finish(ok=True)\n"
        )
        target = self.start(pythons()[-1], script)
        tid = [t for t in map(int, os.listdir(f"/proc/{target.pid}/task")) if t != target.pid][0]
        self.refusal(tid, f"thread of process {target.pid}")

    def test_zombie(self):
        process = subprocess.Popen(["true"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        try:
            self.refusal(process.pid, "zombie")
        finally:
            process.wait()

    def test_kernel_thread(self):
        with open("/proc/2/stat", encoding="ascii", errors="replace") as file:
            if "(kthreadd)" not in file.read():
                self.skipTest("process 2 is no kernel thread here (a container)")
        self.refusal(2, "kernel thread")

    def test_too_old(self):
        root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
        found = [p for v in ("2.7", "3.6", "3.7") for p in glob.glob(f"{root}/versions/{v}.*/bin/python")]
        if not found:
            self.skipTest("no Python older than 3.8 on this machine")
        for path in found:
            version = ".".join(pathlib.Path(path).parent.parent.name.split(".")[:2])
            target = self.start_command([path, "-c", "print('up', flush=True); input()"] if version[0] == "3"
                                        else [path, "-c", "import sys; print 'up'; sys.stdout.flush(); raw_input()"])
            target.read_line()
            self.refusal(target.pid, f"Python {version}", "too old", "3.8")

    def test_damaged_layout(self):
        """A target that forges its own structures is refused or read, never followed anywhere: here the head of the list
        of interpreters leads to nowhere."""
        python = pythons(kinds=("pyenv",), minimum=(3, 9))[-1]
        script = pathlib.Path(self.directory()) / "forged.py"
        script.write_text(
            "import ctypes, handshake\n"
            "runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, '_PyRuntime'))\n"
            "target = handshake.Target({'runtime': runtime})\n"
            "offset = int(target.next_order())\n"
            "head = ctypes.c_uint64.from_address(runtime + offset)\n"
            "good, head.value = head.value, 0xdead0000\n"
            "print('forged', flush=True)\n"
            "target.next_order()\n"
            "head.value = good\n"
            "print('mended', flush=True)\n"
            "target.wait()\ntarget.finish(ok=True)\n"
        )
        target = self.start(python, script)
        said = self.show(target.pid)
        target.send(said["layout.runtime.interpreters_head"])
        self.assertEqual(target.read_line(), "forged")
        self.refusal(target.pid, "can't be read", ".".join(map(str, python.version)))
        target.send("mend")
        self.assertEqual(target.read_line(), "mended")
        self.assertEqual(self.layout(self.show(target.pid)), self.layout(said))


class Starting(FinderTest):
    def test_a_shell_that_becomes_python(self):
        python = pythons()[-1] if not pythons()[-1].root else pythons(kinds=("host",))[-1]
        code = "import sys; print('up', flush=True); sys.stdin.read()"
        target = self.start_command(["sh", "-c", 'read go; exec "$0" -c "$1"', python.path, code])
        self.refusal(target.pid, "is not Python")
        waiting = subprocess.Popen([SHOW, str(target.pid), "30000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        target.send("go")
        out, err = waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 0, err)
        self.assertIn("version " + ".".join(map(str, python.version)), out)
        self.assertEqual(target.read_line(), "up")


if __name__ == "__main__":
    main()
