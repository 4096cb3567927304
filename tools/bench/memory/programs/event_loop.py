"""Tasks that hand numbers to each other through an asyncio queue."""

import asyncio

from repeat import run

loop = asyncio.new_event_loop()


async def worker(q, out):
    while True:
        x = await q.get()
        if x is None:
            return
        out.append("r%d" % x * 3)


async def main():
    q = asyncio.Queue()
    out = []
    ws = [asyncio.create_task(worker(q, out)) for _ in range(5)]
    for i in range(300):
        await q.put(i)
        if i % 20 == 0:
            await asyncio.sleep(0)
    for _ in ws:
        await q.put(None)
    await asyncio.gather(*ws)
    return bytearray(3000)


def step():
    loop.run_until_complete(main())


run(step)
