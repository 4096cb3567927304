"""Every option that --help names is in the man page and in the shells' completions, and they name no others.

    documented.py MEMATTACH TOP_DIRECTORY
"""

import pathlib
import re
import subprocess
import sys


def options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def main():
    binary, top = sys.argv[1], pathlib.Path(sys.argv[2]) / "tools/memattach"
    told = set()
    for verb in ([], ["dump"], ["doctor"], ["report"]):
        told |= options(subprocess.run([binary, *verb, "--help"], check=True, capture_output=True, text=True).stdout)
    wrong = []
    for name in ("memattach.1", "completions/memattach.bash", "completions/_memattach", "completions/memattach.fish"):
        text = (top / name).read_text(encoding="utf-8").replace("\\-", "-")
        if name.endswith(".fish"):
            commands = re.findall(r"^complete .*", text, re.M)
            text = re.sub(r" -l ([a-z][a-z-]*)", r" --\1", "\n".join(commands))
        named = options(text)
        wrong += [f"{name} lacks {option}" for option in sorted(told - named)]
        wrong += [f"{name} has {option}, which memattach hasn't" for option in sorted(named - told)]
    print("\n".join(wrong))
    sys.exit(1 if wrong or len(told) < 20 else 0)


main()
