"""`memattach doctor`: what would work, on this machine and on a process, and what is missing where it wouldn't."""

import os
import signal

from harness import LiveTest, each_python, main, wounds


class Doctor(LiveTest):
    def test_this_machine(self):
        report = self.memattach("doctor", "--json").json
        self.assertEqual(report["schema"], "memattach.doctor/1")
        self.assertTrue(report["usable"])
        machine = report["machine"]
        self.assertEqual(machine["uid"], str(os.geteuid()))
        self.assertIn(os.uname().release, machine["kernel"])
        with open("/proc/sys/kernel/perf_event_paranoid", encoding="ascii") as file:
            self.assertEqual(machine["kernel.perf_event_paranoid"], file.read().strip())
        text = self.memattach("doctor").out
        for name in machine:
            self.assertIn(name, text)

    @each_python()
    def test_a_process(self, python):
        target = self.start(python, "cpu_shares.py")
        report = self.memattach("doctor", "-p", target.pid, "--json").json
        about = report["target"]
        self.assertTrue(report["usable"])
        self.assertTrue(about["Python"].startswith(".".join(map(str, python.version))), about)
        self.assertIn("_PyRuntime", about["found by"])
        # From 3.13 on the target describes itself.
        self.assertEqual(about["offsets from"].startswith("_Py_DebugOffsets"), python.minor >= (3, 13), about)
        self.assertTrue(all(ability["works"] for ability in report["abilities"]), report["abilities"])

    def test_what_cant_be_profiled_and_why(self):
        other = self.start_command(["/bin/sleep", "1000"])
        self.wait_for_exec(other, "sleep")
        report = self.memattach("doctor", "-p", other.pid, "--json", code=2).json
        self.assertFalse(report["usable"])
        self.assertIn("not Python", report["target"]["error"])
        self.assertIn("there is no process", self.memattach("doctor", "-p", "4194303", code=2).out)

    def test_a_container_root_without_the_capability(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to give a capability up")
        target = self.start_any("cpu_shares.py", wrap=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
        report = self.memattach("doctor", "-p", target.pid, "--json", wrap=drop, code=2).json
        self.assertEqual(report["machine"]["CAP_SYS_PTRACE"], "no")
        self.assertIn("cap-add", report["target"]["error"])

    def test_a_stopped_process_is_examined_and_dumped(self):
        target = self.start_any("blocked.py")
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        self.assertTrue(self.memattach("doctor", "-p", target.pid, "--json").json["usable"])
        dump = self.memattach("dump", "-p", target.pid, "--json").json
        self.assertEqual({t["state"] for t in dump["threads"]}, {"stopped"})
        for thread in dump["threads"]:
            self.assertTrue(thread["frames"])
        self.assertEqual(wounds(target.pid, stopped=True), [])
        os.kill(target.pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
