"""Nested documents copied, pickled and flattened."""

import copy
import pickle

from repeat import run

doc = {"users": [{"id": i, "roles": ["a", "b", "c"], "prefs": {"x": i, "y": [1.5 * i, 2.5]}} for i in range(60)]}


def step():
    d = copy.deepcopy(doc)
    p = pickle.dumps(d)
    q = pickle.loads(p)
    flat = [(u["id"], r) for u in q["users"] for r in u["roles"]]
    m = {k: v for k, v in enumerate(flat)}


run(step)
