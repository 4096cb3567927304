"""A target that forges its own interpreter's structures is read in bounded time and memory, and nothing crashes."""

import re

from harness import LiveTest, each_python, main
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


if __name__ == "__main__":
    main()
