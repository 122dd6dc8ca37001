"""Promises of size: many actors at once, more data than the store takes, more memory than the machine has."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tests.engine.driver_process import run

import shoal
from shoal.node.io.memory_watch import memory_used

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

MB = 1 << 20


def test_a_thousand_actors_live_at_once(shoal_start: object) -> None:
    assert callable(shoal_start)
    shoal_start(num_cpus=2, log_to_driver=False)

    @shoal.remote(num_cpus=0)
    class Resident:
        def __init__(self, number: int) -> None:
            self.number = number

        def told(self) -> tuple[int, int]:
            return self.number, os.getpid()

    residents = [Resident.remote(number) for number in range(1000)]
    told = shoal.get([resident.told.remote() for resident in residents], timeout=150)
    assert [number for number, _ in told] == list(range(1000))
    assert len({pid for _, pid in told}) == 1000
    assert shoal.get([resident.told.remote() for resident in residents], timeout=60) == told  # each is still there


def test_three_times_the_store_is_made_shuffled_and_consumed(shoal_start: object) -> None:
    """A shuffle by ranges of 24 blocks of 8 MB in a store of 64 MB: what does not fit is on disk in between."""
    assert callable(shoal_start)
    shoal_start(num_cpus=2, object_store_memory=64 * MB, log_to_driver=False)
    blocks, parts, rows = 24, 12, MB

    @shoal.remote
    def make(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 1 << 30, rows)

    @shoal.remote(num_returns=parts)
    def split(block: np.ndarray) -> list[np.ndarray]:
        place = (block * parts) >> 30
        return [block[place == part] for part in range(parts)]

    @shoal.remote
    def merge(part: int, *pieces: np.ndarray) -> tuple[int, int, bool]:
        whole = np.concatenate(pieces)
        ours = bool((((whole * parts) >> 30) == part).all())
        return len(whole), int(whole.sum()), ours

    made = [make.remote(seed) for seed in range(blocks)]
    pieces = [split.remote(block) for block in made]
    merged = [merge.remote(part, *[each[part] for each in pieces]) for part in range(parts)]
    counted = shoal.get(merged, timeout=150)
    assert all(ours for _, _, ours in counted)
    assert sum(count for count, _, _ in counted) == blocks * rows
    assert sum(total for _, total, _ in counted) == sum(
        int(np.random.default_rng(seed).integers(0, 1 << 30, rows).sum()) for seed in range(blocks)
    )


def test_a_task_that_takes_all_memory_is_killed_and_told_so() -> None:
    """The threshold lies a little above what the machine uses now; the others go on."""
    used, limit = memory_used()
    share = used / limit + 0.03
    run(
        """
session(log_to_driver=False)
@shoal.remote(max_retries=1)
def eat():
    eaten = []
    for _ in range(120):
        eaten.append(bytearray(b"x") * (50 << 20))
        time.sleep(0.02)
    return len(eaten)
actor = Actor.remote()
before = shoal.get(actor.pid.remote(), timeout=60)
try:
    shoal.get(eat.remote(), timeout=60)
except shoal.exceptions.OutOfMemoryError as error:
    text = str(error)
    assert "ran out of memory" in text and "tried 2 times" in text and "MB" in text, text
else:
    raise AssertionError("it was not killed")
assert shoal.get(actor.pid.remote(), timeout=60) == before
assert shoal.get([one.remote() for _ in range(10)], timeout=60) == [1] * 10
""",
        timeout_s=90,
        SHOAL_MEMORY_USAGE_THRESHOLD=f"{share:.4f}",
    )
