"""run(step) calls step() for ever, and tells how often it has in the file that $ROUNDS names (a double). With $COUNTS: 20
times, and the bytes that each line asks for in one go to that file (count_lines.c, preloaded)."""

import ctypes
import mmap
import os
import struct

WARM, COUNTED = 3, 20


def run(step):
    for _ in range(WARM):
        step()
    if "COUNTS" in os.environ:
        counter = ctypes.PyDLL(None)
        counter.count_lines_start()
        for _ in range(COUNTED):
            step()
        counter.count_lines_stop(os.environ["COUNTS"].encode(), ctypes.c_double(COUNTED))
        return
    with open(os.environ["ROUNDS"], "w+b") as file:
        file.truncate(4096)
        rounds = mmap.mmap(file.fileno(), 4096)
    print("ready", flush=True)
    count = 0
    while True:
        step()
        count += 1
        struct.pack_into("d", rounds, 0, count)
