"""Matrices as lists of lists: seldom an allocation, then many."""

from repeat import run

def step():
    n = 40
    a = [[float(i * j % 7) for j in range(n)] for i in range(n)]
    t = list(zip(*a))
    c = [[sum(x * y for x, y in zip(row, col)) for col in t] for row in a]
    d = [list(r) for r in c]
    return sum(map(sum, d))


run(step)
