"""Writes what this Python says about the lines of its standard library, for check_lines to compare with.

Runs in the Python that is tested (3.8+), with nothing but the standard library:

    python3.11 dump.py [--with-tests] > lines.bin

Format, little endian: b"MALINES1", u8 kind (0 lnotab, 1 3.10 line table, 2 location table), then for each code object
u32 first line, u32 table length, the table, u32 count, count × (u32 start, u32 end, u32 line or 0) where start and end
are byte offsets. The ranges come from the interpreter's own co_lines() (3.10+) or from dis.findlinestarts.
"""

import dis
import importlib.util
import marshal
import os
import struct
import sys
import types
import warnings

TEST_DIRECTORIES = {"test", "tests", "idle_test", "lib2to3"}


def sources(root, with_tests):
    for directory, subdirectories, names in os.walk(root):
        skipped = {"site-packages", "dist-packages", "__pycache__"} | (set() if with_tests else TEST_DIRECTORIES)
        subdirectories[:] = sorted(set(subdirectories) - skipped)
        for name in sorted(names):
            if name.endswith(".py"):
                yield os.path.join(directory, name)


def compiled(path):
    """The module's code object: from its .pyc where that is there (much faster), else compiled."""
    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            data = file.read()
        if data[:4] == importlib.util.MAGIC_NUMBER:
            return marshal.loads(data[16:])
    except (OSError, ValueError, EOFError):
        pass
    try:
        with open(path, "rb") as file:
            return compile(file.read(), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # test data that is wrong on purpose
        return None


def code_objects(code):
    pending = [code]
    while pending:
        code = pending.pop()
        yield code
        pending.extend(const for const in code.co_consts if isinstance(const, types.CodeType))


def ranges_from_linestarts(code):
    starts = list(dis.findlinestarts(code))
    size = len(code.co_code)
    for index, (start, line) in enumerate(starts):
        end = starts[index + 1][0] if index + 1 < len(starts) else size
        yield start, end, line


def main():
    warnings.simplefilter("ignore")
    out = sys.stdout.buffer
    has_co_lines = hasattr(types.CodeType, "co_lines")
    kind = 2 if sys.version_info >= (3, 11) else 1 if has_co_lines else 0
    out.write(b"MALINES1" + bytes([kind]))
    root = os.path.dirname(os.__file__)
    for path in sources(root, "--with-tests" in sys.argv):
        module = compiled(path)
        if module is None:
            continue
        for code in code_objects(module):
            table = code.co_linetable if has_co_lines else code.co_lnotab
            numbers = []
            for start, end, line in code.co_lines() if has_co_lines else ranges_from_linestarts(code):
                if start < end:
                    numbers += (start, end, line or 0)
            out.write(struct.pack("<II", code.co_firstlineno, len(table)) + table)
            out.write(struct.pack("<I%dI" % len(numbers), len(numbers) // 3, *numbers))


main()
