"""The whole path, briefly: attach, sample, report, leave. Also run in the builds with sanitizers."""
# labels: smoke

import signal

from harness import LiveTest, each_python, main


class Smoke(LiveTest):
    @each_python()
    def test_the_hot_line_is_found(self, python):
        target = self.start(python, "cpu_shares.py", "9")
        profile = self.profile(target, "-d", "1s", "--cpu")
        self.assertEqual(profile["schema"], "memattach.profile/1")
        self.assertEqual(profile["target"]["pid"], target.pid)
        version = ".".join(map(str, python.version))
        self.assertTrue(profile["target"]["python"].startswith(version), profile["target"])
        heavy, light = self.line(profile, target, "heavy"), self.find_line(profile, target.source, target.lines["light"])
        self.assertGreater(heavy["cpu_samples"], light["cpu_samples"] if light else 0)

    @each_python(kinds=("host",))
    def test_dump_shows_the_stack_that_the_program_is_in(self, python):
        target = self.start(python, "blocked.py")
        target.wait_until_it_listens()
        dump = self.memattach("dump", "-p", target.pid, "--json").json
        threads = {t["tid"]: t for t in dump["threads"]}
        self.assertEqual(set(threads), set(target.truth["threads"].values()))
        for name, tid in target.truth["threads"].items():
            frames = [(f["function"].split(".")[-1], f["line"]) for f in threads[tid]["frames"] if f["file"] == target.source]
            self.assertIn((name, target.lines[name]), frames)
        self.assertEqual(threads[target.truth["threads"]["reads"]]["waiting_in"], "read")
        self.assertIn("pipe:", threads[target.truth["threads"]["reads"]]["waiting_on"])
        text = self.memattach("dump", "-p", target.pid).out
        self.assertIn("waiting in read on fd", text)
        self.assertNotIn("\x1b", text)

    def test_ctrl_c_ends_it_with_a_report(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(signal=number):
                target = self.start_any("cpu_shares.py")
                running = self.memattach_start("-p", target.pid, "--cpu", "--json", "-")
                running.wait_attached()
                running.signal(number)
                run = running.wait()
                self.assertEqual(run.code, 128 + number, run)
                self.assertEqual(run.json["target"]["pid"], target.pid)


if __name__ == "__main__":
    main()
