"""Words found by a regular expression, and counted."""

import collections
import random
import re

from repeat import run

r = random.Random(1)
vocab = ["".join(r.choice("abcdefghij") for _ in range(r.randint(2, 9))) for _ in range(3000)]
text = "\n".join(" ".join(r.choice(vocab) for _ in range(12)) for _ in range(400))


def step():
    counts = collections.Counter()
    for line in text.split("\n"):
        words = re.findall(r"[a-z]+", line)
        counts.update(words)
    top = sorted(counts.items(), key=lambda kv: -kv[1])
    pairs = [(a, b[0]) for a, b in zip(counts, top)]
    return len(pairs)


run(step)
