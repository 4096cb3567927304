"""The allocator entry points that memattach finds are those that the target itself would be told by its linker and its
interpreter: for every version, for LD_PRELOADed allocators, and for every setting of PYTHONMALLOC."""

import glob
import os
import pathlib
import shutil
import subprocess

import harness
from harness import LiveTest, each_python, main

SHOW_SITES = pathlib.Path(harness.MEMATTACH).parent / "show_sites"


def preloadable(pattern):
    return next(iter(sorted(glob.glob(f"/usr/lib/x86_64-linux-gnu/{pattern}"))), None)


class Sites(LiveTest):
    def show(self, target, *options):
        run = subprocess.run([SHOW_SITES, str(target.pid), *options], capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 0, run.stderr)
        found = {"sites": {}, "redirects": {}, "notes": []}
        for line in run.stdout.splitlines():
            kind, _, rest = line.partition(" ")
            words = rest.split()
            if kind == "site":
                address = next(int(w, 16) for w in words if w.startswith("0x"))
                found["sites"].setdefault(words[0], {})[address] = rest
            elif kind == "redirect":
                found["redirects"][int(words[0], 16)] = (int(words[1], 16), int(words[2], 16))
            elif kind == "note":
                found["notes"].append(rest)
            else:
                found.setdefault(kind, rest)
        return found

    def check_malloc(self, target, found):
        for name, address in target.truth["malloc"].items():
            group = "mmap" if name in ("mmap", "munmap", "mremap") else "malloc"
            self.assertIn(address, found["sites"][group], name)

    def check_object(self, target, found, functions):
        sites = found["sites"]["object"]
        for name, address in functions.items():
            # A site may start behind the function's endbr64.
            self.assertTrue(address in sites or address + 4 in sites, f"{name} {address:#x} {sites}")

    @each_python()
    def test_every_version(self, python):
        target = self.start(python, "allocators.py")
        found = self.show(target)
        self.assertEqual(found["malloc"], "glibc")
        self.check_malloc(target, found)
        self.assertEqual(found["object"], "mimalloc" if python.free_threaded else "pymalloc")
        functions = dict(target.truth["object"])
        self.assertIsNone(functions.pop("ctx"))
        self.check_object(target, found, functions)
        self.assertEqual(found["notes"], [])
        for original, alias in found["redirects"].values():
            self.assertIn(original, functions.values())
            self.assertNotEqual(original, alias)

    @each_python(kinds=("system",))
    def test_distribution_builds_inline_pymalloc(self, python):
        target = self.start(python, "allocators.py")
        found = self.show(target)
        redirected = {original for original, _ in found["redirects"].values()}
        self.assertIn(target.truth["object"]["malloc"], redirected)
        self.assertIn(target.truth["object"]["free"], redirected)

    @each_python(kinds=("system",))
    def test_preloaded_allocators(self, python):
        for name, pattern in (
            ("jemalloc", "libjemalloc.so.2"),
            ("tcmalloc", "libtcmalloc_minimal.so.4"),
            ("mimalloc", "libmimalloc.so.2*"),
        ):
            with self.subTest(name):
                library = preloadable(pattern)
                if not library:
                    self.skipTest(f"no {pattern} on this machine")
                target = self.start(python, "allocators.py", library, env={"LD_PRELOAD": library})
                found = self.show(target)
                self.assertEqual(found["malloc"], name)
                self.check_malloc(target, found)
                ours = [s for s in found["sites"]["malloc"].values() if s.split()[0:2] == ["malloc", "malloc"]]
                self.assertEqual(len(ours), 1)
                self.assertIn(os.path.basename(os.path.realpath(library))[:12], os.path.realpath(ours[0].split()[-1]))
                self.assertTrue(any("_Znwm" in s for s in found["sites"]["malloc"].values()), "operator new is its own")

    def test_musl(self):
        """Debian has musl's library, and no Python for it: the sites of a C program."""
        library = "/lib/x86_64-linux-musl/libc.so"
        if not os.path.exists(library) or not shutil.which("cc"):
            self.skipTest(f"no {library} on this machine, or no C compiler")
        program = f"{self.directory()}/program"
        loader = "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"
        build = ["cc", "-nostdlib", "-nostartfiles", "-fno-stack-protector", "-pie", "-o", program]
        subprocess.run([*build, harness.FIXTURES / "musl_program.c", library, loader], check=True)
        target = self.start_command([program], ready=True)
        found = self.show(target, "no-python")
        self.assertEqual(found["malloc"], "musl")
        self.check_malloc(target, found)
        self.assertNotIn("object", found["sites"])
        target.process.stdin.close()
        self.assertTrue(target.read_json()["ok"])

    @each_python(kinds=("host",), free_threaded=False)
    def test_pythonmalloc(self, python):
        pymalloc, redirected = None, None

        def served(found):
            return {a - skipped for a in found["sites"]["object"] for skipped in (0, 4)}

        for setting, name in (
            ("pymalloc", "pymalloc"),
            ("malloc", "malloc"),
            ("debug", "pymalloc_debug"),
            ("pymalloc_debug", "pymalloc_debug"),
            ("malloc_debug", "malloc_debug"),
        ):
            with self.subTest(setting):
                target = self.start(python, "allocators.py", env={"PYTHONMALLOC": setting})
                found = self.show(target)
                self.assertEqual(found["object"], name)
                functions = {k: v for k, v in target.truth["object"].items() if k != "ctx"}
                if name == "pymalloc":
                    self.check_object(target, found, functions)
                    pymalloc = len(found["sites"]["object"])
                elif name == "pymalloc_debug":
                    # pymalloc itself serves, behind the hooks: as many sites, none of them a hook.
                    self.assertEqual(len(found["sites"]["object"]), pymalloc)
                    self.assertFalse(set(functions.values()) & set(found["sites"]["object"]))
                    self.assertTrue(all("padding=24" in s for s in found["sites"]["object"].values()))
                else:
                    self.assertNotIn("object", found["sites"])
                if name == "pymalloc_debug":
                    # Where the compiler inlined pymalloc into the hooks too, their table is what leads around it.
                    self.assertTrue({o for o, _ in found["redirects"].values()} <= served(found))
                    self.assertEqual(bool(found["redirects"]), redirected)
                elif name == "pymalloc":
                    redirected = bool(found["redirects"])
                else:
                    self.assertEqual(found["redirects"], {})

    @each_python(minimum=(3, 13))
    def test_pythonmalloc_mimalloc(self, python):
        """Its own one is the only one that free-threaded builds take; others have it too."""
        served = None
        for setting, name in (("mimalloc", "mimalloc"), ("debug", "mimalloc_debug"), ("mimalloc_debug", "mimalloc_debug")):
            if setting == "debug" and not python.free_threaded:
                continue  # pymalloc's
            with self.subTest(setting):
                target = self.start(python, "allocators.py", env={"PYTHONMALLOC": setting})
                found = self.show(target)
                self.assertEqual(found["object"], name)
                sites = found["sites"]["object"]
                functions = {k: v for k, v in target.truth["object"].items() if k != "ctx"}
                if name == "mimalloc":
                    self.check_object(target, found, functions)
                    served = len(sites)
                else:
                    self.assertEqual(len(sites), served)
                    self.assertFalse(set(functions.values()) & set(sites))
                    self.assertTrue(all("padding=24" in s for s in sites.values()))
                self.assertTrue(all("limit=0 " in s for s in sites.values()), sites)

    @each_python(kinds=("host",))
    def test_tracemalloc_in_front(self, python):
        target = self.start(python, "allocators.py", options=["-X", "tracemalloc"])
        found = self.show(target)
        self.assertEqual(found["object"], f"{'mimalloc' if python.free_threaded else 'pymalloc'}, hooked")
        functions = {k: v for k, v in target.truth["object"].items() if k != "ctx"}
        self.assertFalse(set(functions.values()) & set(found["sites"]["object"]))
        # mimalloc's functions for objects are others than those for what isn't.
        self.assertEqual(len(found["sites"]["object"]), 8 if python.free_threaded else 4)


if __name__ == "__main__":
    main()
