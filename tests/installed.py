"""`cmake --install` puts the binary, the man page and the completions where distributions want them, and the binary runs.

    installed.py BUILD_DIRECTORY
"""

import os
import subprocess
import sys
import tempfile

WANTED = [
    "bin/memattach",
    "share/bash-completion/completions/memattach",
    "share/fish/vendor_completions.d/memattach.fish",
    "share/man/man1/memattach.1",
    "share/zsh/vendor-completions/_memattach",
]


def main():
    with tempfile.TemporaryDirectory() as prefix:
        subprocess.run(["cmake", "--install", sys.argv[1], "--prefix", prefix], check=True, stdout=subprocess.DEVNULL)
        have = sorted(
            os.path.relpath(os.path.join(directory, name), prefix)
            for directory, _, names in os.walk(prefix)
            for name in names
        )
        if have != WANTED:
            sys.exit(f"installed: {have}\nwanted:    {WANTED}")
        version = subprocess.run([f"{prefix}/bin/memattach", "--version"], check=True, capture_output=True, text=True)
        if not version.stdout.startswith("memattach "):
            sys.exit(version.stdout)


main()
