"""A CSV text read and written row by row."""

import csv
import io
import random

from repeat import run

r = random.Random(5)
src = "id,name,qty,price\n" + "\n".join("%d,name%d,%d,%.2f" % (i, i, r.randrange(99), r.random() * 100) for i in range(2000))


def step():
    total = 0
    out = io.StringIO()
    w = csv.writer(out)
    for row in csv.DictReader(io.StringIO(src)):
        q = int(row["qty"])
        p = float(row["price"])
        total += q * p
        w.writerow([row["id"], q * p])
    text = out.getvalue()
    lines = text.splitlines()
    return len(lines)


run(step)
