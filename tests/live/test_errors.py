"""What can't be profiled is refused in one line, with exit code 2, before anything is done or written."""

import os
import pathlib
import signal
import subprocess
import sys

from harness import LiveTest, main, pythons

NOBODY = 65534


class Refusals(LiveTest):
    def refuse(self, *args, words=(), **kwargs):
        run = self.memattach(*args, code=None, **kwargs)
        self.assert_error(run, *words)
        return run

    def test_no_such_process(self):
        for verb in ([], ["dump"]):
            self.refuse(*verb, "-p", "4194303", words=("there is no process 4194303",))

    def test_a_thread_is_pointed_to_its_process(self):
        target = self.start_any("blocked.py")
        tid = target.truth["threads"]["reads"]
        self.refuse("-p", tid, "-d", "1", words=(tid, f"thread of process {target.pid}", f"--pid {target.pid}"))

    def test_not_python(self):
        other = self.start_command(["/bin/sleep", "1000"])
        self.wait_for_exec(other, "sleep")
        self.refuse("-p", other.pid, "-d", "1", words=(f"process {other.pid}", "not Python"))

    def test_python_too_old(self):
        old = [p for p in pythons(minimum=(2, 0), maximum=(3, 7)) if not p.root]
        if not old:
            self.skipTest("no Python older than 3.8 on this machine")
        for python in old:
            with self.subTest(python=str(python)):
                script = "import sys; sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read()"
                target = self.start_command([python.path, "-c", script], python=python)
                self.assertEqual(target.read_line(), "up")
                self.refuse("-p", target.pid, words=(f"{python.version[0]}.{python.version[1]}", "too old", "3.8"))

    def test_kernel_thread(self):
        kernel = [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*") if self.is_kernel_thread(p)]
        if not kernel:
            self.skipTest("no kernel threads are visible here (a container)")
        self.refuse("-p", kernel[0], words=(f"process {kernel[0]}", "kernel thread"))

    def test_zombie(self):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        try:
            self.refuse("-p", pid, words=(f"process {pid}", "zombie"))
        finally:
            os.waitpid(pid, 0)

    def test_another_users_process(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to be two users")
        target = self.start_any("cpu_shares.py")
        run = self.refuse("-p", target.pid, "-d", "1", wrap=self.as_nobody(),
                          words=(f"process {target.pid}", "uid 0", f"uid {NOBODY}", "sudo"))
        self.assertNotIn("Errno", run.err)

    def test_root_without_the_capability(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to give a capability up")
        target = self.start_any("cpu_shares.py", wrap=["setpriv", "--reuid=65534", "--clear-groups"])
        drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
        self.refuse("-p", target.pid, "-d", "1", wrap=drop, words=("CAP_SYS_PTRACE", "cap-add"))

    def test_already_traced(self):
        target = self.start_any("cpu_shares.py")
        tracer = self.trace(target.pid)
        try:
            self.refuse("-p", target.pid, "-d", "1", words=("traced already", f"process {tracer.pid}", "python", "--cpu"))
            # Sampling needs no tracing.
            self.memattach("-p", target.pid, "-d", "200ms", "--cpu", "--json", "-")
        finally:
            tracer.stdin.close()
            tracer.wait()

    def test_bad_values(self):
        for args, words in (
            (["-p", "x"], ["'x' is not a process id"]),
            (["-p", "1", "-d", "soon"], ["--duration", "'soon'", "30s"]),
            (["-p", "1", "-d", "0"], ["--duration", "too short"]),
            (["-p", "1", "-r", "fast"], ["--rate", "'fast'"]),
            (["-p", "1", "-r", "0"], ["--rate", "too low"]),
            (["-p", "1", "--frobnicate"], ["no option --frobnicate"]),
            (["python", "x.py"], ["memattach -- python"]),
            (["report", "/nonexistent.json"], ["/nonexistent.json", "No such file"]),
            (["report", __file__], [__file__]),
            (["--", "/nonexistent/program"], ["/nonexistent/program", "No such file"]),
            (["--", "/bin/true"], ["Python"]),
        ):
            with self.subTest(args=args):
                self.refuse(*args, words=words)

    def test_an_output_that_cant_be_written_is_found_out_before(self):
        target = self.start_any("cpu_shares.py")
        directory = self.directory()
        for path in (f"{directory}/missing/out.json", directory, "/proc/out.json"):
            with self.subTest(path=path):
                run = self.refuse("-p", target.pid, "-d", "1h", "--json", path, words=("can't write", path), timeout=30)
                self.assertNotIn("profiling", run.err)
        self.assertEqual(os.listdir(directory), [])

    def test_a_full_disk_names_the_file(self):
        target = self.start_any("cpu_shares.py")
        run = self.memattach("-p", target.pid, "-d", "100ms", "--cpu", "--json", "/dev/full", "-q", code=2)
        self.assertIn("can't write /dev/full: No space left on device", run.err)

    def test_closed_stdout_and_a_reader_that_left(self):
        target = self.start_any("cpu_shares.py")
        closed = subprocess.run(["sh", "-c", f'"$0" -p {target.pid} -d 1h --cpu >&-', self.binary],
                                capture_output=True, text=True, timeout=60)
        self.assertEqual(closed.returncode, 2)
        self.assertIn("can't write stdout", closed.stderr)
        reading, writing = os.pipe()
        os.close(reading)
        left = subprocess.run([self.binary, "-p", str(target.pid), "-d", "100ms", "--cpu", "-q"], stdout=writing,
                              stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writing)
        self.assertEqual((left.returncode, left.stderr), (128 + signal.SIGPIPE, ""))

    # -- helpers

    @staticmethod
    def is_kernel_thread(proc):
        try:
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return bool(int(fields[6]) & 0x00200000)  # PF_KTHREAD

    def as_nobody(self):
        """A prefix that runs memattach as nobody, from a place that nobody can reach."""
        directory = self.directory()
        binary = f"{directory}/memattach"
        pathlib.Path(binary).write_bytes(pathlib.Path(self.binary).read_bytes())
        os.chmod(binary, 0o755)
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", f'shift; exec {binary} "$@"', "-"]

    def trace(self, pid):
        """A process that has seized `pid` until its stdin is closed."""
        program = (
            "import ctypes, sys\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "libc.ptrace.argtypes = [ctypes.c_long] * 4\n"
            f"assert libc.ptrace(0x4206, {pid}, 0, 0) == 0, ctypes.get_errno()\n"  # PTRACE_SEIZE
            "print('seized', flush=True)\nsys.stdin.read()\n"
        )
        tracer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(tracer.stdout.close)
        self.assertEqual(tracer.stdout.readline(), "seized\n")
        return tracer


class Choosing(LiveTest):
    """Without --pid: the only Python of the user is taken, several are listed. In a pid namespace of its own, where no
    other Python is."""

    def run_alone(self, count):
        if os.geteuid() != 0:
            self.skipTest("needs root, for a pid namespace of its own")
        python = [p for p in pythons() if not p.root][0]
        body = f"""
            mount -t proc proc /proc
            i=0
            while [ $i -lt {count} ]; do
              mkfifo {{d}}/ready$i {{d}}/stop$i
              {python.path} -c 'import sys; open(sys.argv[1], "w").close(); open(sys.argv[2]).read()' {{d}}/ready$i {{d}}/stop$i &
              cat {{d}}/ready$i
              i=$((i + 1))
            done
            {self.binary} -d 200ms --cpu --collapsed {{d}}/out
            code=$?
            i=0
            while [ $i -lt {count} ]; do : >{{d}}/stop$i; i=$((i + 1)); done
            wait
            exit $code
        """.format(d=self.directory())
        return subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", body], capture_output=True,
                              text=True, timeout=60)

    def test_the_only_one_is_taken(self):
        run = self.run_alone(1)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("the only Python process of yours", run.stderr)

    def test_several_are_listed(self):
        run = self.run_alone(2)
        self.assertEqual(run.returncode, 2, run.stderr)
        lines = run.stderr.strip().split("\n")
        self.assertEqual(len(lines), 3, run.stderr)
        self.assertIn("2 Python processes of yours are running", lines[0])
        for line in lines[1:]:
            self.assertRegex(line, r"^ +\d+  Python 3\.\d+\.\d+ .* MB +.*import sys")

    def test_none(self):
        run = self.run_alone(0)
        self.assertEqual(run.returncode, 2, run.stderr)
        self.assertIn("no Python process of yours is running", run.stderr)


if __name__ == "__main__":
    main()
