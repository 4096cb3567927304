"""Five thousand records sorted, grouped and copied, all over the heap."""

import random

from repeat import run

r = random.Random(4)
rows = [{"a": r.random(), "b": r.randrange(50), "c": "n%d" % i} for i in range(5000)]


def step():
    by_a = sorted(rows, key=lambda x: x["a"])
    good = [x for x in by_a if x["b"] > 10]
    groups = {}
    for x in good:
        groups.setdefault(x["b"], []).append((x["a"], x["c"]))
    means = {k: sum(a for a, _ in v) / len(v) for k, v in groups.items()}
    copy = [dict(x) for x in good[:500]]
    return len(copy)


run(step)
