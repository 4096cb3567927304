"""The harness's own check that it would notice harm: it does to a target what a careless tracer would leave behind."""

import os
import signal

from harness import LiveTest, each_python, executable_mappings, main, wounds


class Harness(LiveTest):
    @each_python()
    def test_unharmed_target_finishes(self, python):
        target = self.start(python, "cpu_shares.py")
        self.assertEqual(wounds(target.pid), [])

    @each_python(kinds=("system",))
    def test_leftover_breakpoint_is_noticed(self, python):
        target = self.start(python, "cpu_shares.py", expect=None)
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        mapping = next(m for m in executable_mappings(target.pid) if m.inode)
        with open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as memory:
            before = os.pread(memory.fileno(), 1, mapping.end - 4096)
            os.pwrite(memory.fileno(), b"\xcc" if before != b"\xcc" else b"\x90", mapping.end - 4096)
        found = wounds(target.pid)
        self.assertTrue(any("stopped" in w for w in found), found)
        self.assertTrue(any("text changed" in w for w in found), found)
        self.assertFalse(any("text changed" in w or "traced" in w for w in wounds(os.getpid())))

    def test_dead_target_is_noticed(self):
        target = self.start_command(["/bin/sleep", "1000"])
        os.kill(target.pid, signal.SIGKILL)
        target.process.wait()
        self.assertEqual(wounds(target.pid), [f"process {target.pid} is gone"])


if __name__ == "__main__":
    main()
