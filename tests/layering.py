"""Includes go downward only: a source or header of a layer includes headers of the layers that it may see, and no others.

    layering.py TOP_DIRECTORY
"""

import pathlib
import re
import sys

# What each layer may include, beside its own headers. As in src/CMakeLists.txt.
MAY_SEE = {
    "base": [],
    "trace": ["base"],
    "process": ["base"],
    "elf": ["process", "base"],
    "python": ["elf", "process", "trace", "base"],
    "probe": ["python", "elf", "process", "trace", "base"],
    "profile": ["trace", "base"],
    "report": ["profile", "trace", "base"],
    "session": ["report", "profile", "probe", "python", "elf", "process", "trace", "base"],
}


def wrong_includes(top):
    seen = 0
    for layer, allowed in MAY_SEE.items():
        for directory in (top / "include/memattach" / layer, top / "src" / layer):
            for path in sorted(directory.rglob("*")):
                if path.suffix not in (".h", ".cpp"):
                    continue
                seen += 1
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    match = re.match(r'\s*#\s*include\s*"memattach/(\w+)/', line)
                    if match and match.group(1) != layer and match.group(1) not in allowed:
                        yield f"{path.relative_to(top)}:{number}: {layer} must not see {match.group(1)}"
    if not seen:
        yield "no source was found"


def main():
    top = pathlib.Path(sys.argv[1])
    layers = {p.name for p in (top / "src").iterdir() if p.is_dir()}
    wrong = [f"layer {name} has no place in the order" for name in sorted(layers - set(MAY_SEE))]
    wrong += wrong_includes(top)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


main()
