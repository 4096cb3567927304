"""Blocks compressed, hashed and put together: half of the time is page faults."""

import hashlib
import io
import os
import zlib

from repeat import run

data = os.urandom(20000) + bytes(100000)


def step():
    for size in (1000, 5000, 20000, 60000):
        chunk = data[:size]
        z = zlib.compress(chunk, 1)
        back = zlib.decompress(z)
        h = hashlib.sha256(back).digest()
        f = io.BytesIO()
        f.write(z)
        f.write(back)
        v = f.getvalue()
        ba = bytearray(v)
        ba += z


run(step)
