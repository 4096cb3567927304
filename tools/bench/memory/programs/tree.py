"""A tree of small objects, built by recursion, walked by generators."""

import random

from repeat import run

r = random.Random(3)


class Node:
    __slots__ = ("key", "left", "right", "data")
    def __init__(self, key):
        self.key = key
        self.left = self.right = None
        self.data = {"k": key}


def insert(root, key):
    if root is None:
        return Node(key)
    if key < root.key:
        root.left = insert(root.left, key)
    else:
        root.right = insert(root.right, key)
    return root


def walk(n):
    if n is not None:
        yield from walk(n.left)
        yield n.key
        yield from walk(n.right)


keys = [r.random() for _ in range(1500)]


def step():
    root = None
    for k in keys:
        root = insert(root, k)
    out = list(walk(root))
    s = [str(k) for k in out]
    return len(s)


run(step)
