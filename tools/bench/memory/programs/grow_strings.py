"""A string that grows by +=, taken apart and put together."""

from repeat import run

def step():
    s = ""
    keep = []
    for i in range(2000):
        s += "line %d;" % i
        if i % 10 == 0:
            keep.append(s)
    parts = s.split(";")
    up = [p.upper() for p in parts]
    joined = ",".join(up)
    b = joined.encode("utf-16")
    return len(b)


run(step)
