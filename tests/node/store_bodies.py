"""What the processes of the store's tests do, each in a process of its own (`StoreNode.start_process`)."""

from __future__ import annotations

import random
import time
from typing import Any

from shoal.protocol.messages import Stored

MEGABYTE = 1 << 20


def oid(number: int) -> bytes:
    return number.to_bytes(20, "big")


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(64) * (size // 64)


def put_then_hang_in_the_middle(process: Any, count: int) -> None:
    """A writer that is killed while it writes its last object."""
    for n in range(count):
        process.put(oid(n), content(n, MEGABYTE))

    class Slow:
        total_bytes = 4 * MEGABYTE

        def write_into(self, target: memoryview) -> None:
            target[:MEGABYTE] = bytes(MEGABYTE)
            process.put(oid(1000), b"I am in the middle")
            time.sleep(60)

    process.client.put(oid(999), Slow())


def hold_until_killed(process: Any, stored: Stored, oid_held: bytes) -> None:
    view = process.get(stored)
    assert view.nbytes
    process.put(oid_held, b"I hold it")
    time.sleep(60)


def churn(process: Any, seed: int, turns: int) -> None:
    """Put, read back, free: everything must be what it was."""
    rng = random.Random(seed)
    live: list[tuple[int, Stored, int]] = []
    for turn in range(turns):
        number = seed * 100_000 + turn
        size = rng.choice([20_000, 100_000, MEGABYTE, 3 * MEGABYTE]) // 64 * 64
        live.append((number, process.put(oid(number), content(number, size)), size))
        number, stored, size = rng.choice(live)
        assert process.get(stored) == content(number, size)
        if len(live) > 8:
            number, stored, _ = live.pop(rng.randrange(len(live)))
            process.free(stored, shown=rng.random() < 0.5)
    for number, stored, size in live:
        assert process.get(stored) == content(number, size)
        process.free(stored)
    process.client.drain()
    process.put(oid(seed), b"done")
    time.sleep(60)
