"""A producer and a consumer that wait for each other."""

import queue
import threading

from repeat import run

q = queue.Queue(50)
done = queue.Queue()


def consume():
    out = []
    while True:
        m = q.get()
        if m is None:
            done.put(out)
            out = []
            continue
        out.append(m["payload"] + b"tail")


threading.Thread(target=consume, daemon=True).start()


def step():
    for i in range(300):
        q.put({"i": i, "payload": b"x" * 700})
    q.put(None)
    done.get()


run(step)
