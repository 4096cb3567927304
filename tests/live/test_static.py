"""The static binary (target memattach_static, or preset static): needs no file but itself, so that it can be copied to
any machine. It is run in an empty root with nothing but /proc, against targets outside."""

import os
import pathlib
import shutil
import struct
import subprocess

from harness import MEMATTACH, LiveTest, each_python, main

STATIC = os.environ.get("MEMATTACH_STATIC") or str(pathlib.Path(MEMATTACH).parent / "static/memattach")


class Static(LiveTest):
    def setUp(self):
        super().setUp()
        if not os.access(STATIC, os.X_OK):
            self.skipTest(f"{STATIC} is not there: cmake --build --preset release --target memattach_static")

    def test_it_needs_no_loader_and_no_library(self):
        image = pathlib.Path(STATIC).read_bytes()
        header, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
        # p_type: (p_offset, p_filesz)
        segments = {struct.unpack_from("<I", image, at)[0]: (struct.unpack_from("<Q", image, at + 8)[0],
                                                             struct.unpack_from("<Q", image, at + 32)[0])
                    for at in range(header, header + count * size, size)}
        self.assertIn(1, segments)  # PT_LOAD
        self.assertNotIn(3, segments)  # PT_INTERP
        # It relocates itself, so there is a PT_DYNAMIC, for that alone.
        offset, size = segments[2]
        tags = [struct.unpack_from("<Q", image, at)[0] for at in range(offset, offset + size, 16)]
        self.assertIn(7, tags)  # DT_RELA
        self.assertNotIn(1, tags)  # DT_NEEDED

    def in_empty_root(self, *args, user=None):
        if os.geteuid() != 0:
            self.skipTest("needs root, to enter an empty root")
        root = self.directory()
        os.mkdir(f"{root}/proc")
        shutil.copy(STATIC, f"{root}/memattach")
        enter = ["chroot", *([f"--userspec={user}"] if user else []), root, "/memattach", *map(str, args)]
        # A mount namespace of its own: the mount is gone with it.
        body = f'mount -t proc proc {root}/proc && exec "$@"'
        return subprocess.run(["unshare", "--mount", "sh", "-c", body, "-", *enter], capture_output=True, text=True,
                              timeout=120)

    @each_python()
    def test_it_profiles_from_an_empty_root(self, python):
        target = self.start(python, "cpu_shares.py", "9")
        run = self.in_empty_root("-p", target.pid, "-d", "1s", "--cpu", "--reduced-profile")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("heavy", run.stdout)

    def test_it_explains_refusals_there(self):
        target = self.start_any("cpu_shares.py")
        run = self.in_empty_root("-p", target.pid, "-d", "1s", user="12345:12345")
        self.assertEqual(run.returncode, 2, run.stderr)
        self.assertIn("uid 12345", run.stderr)
        self.assertEqual(len(run.stderr.strip().split("\n")), 1, run.stderr)


if __name__ == "__main__":
    main()
