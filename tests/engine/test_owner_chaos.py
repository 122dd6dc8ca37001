"""Workers and owners are killed at random while nested work runs, and each task notes each of its runs.

Every result is right, and nothing runs more often than a death can explain."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.node_counts import settled_counts, wait_for_counts

import shoal
from shoal.runtime import core

SECONDS = float(os.environ.get("SHOAL_CHAOS_SECONDS", "4"))
GET_TIMEOUT_S = 60


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=4, log_to_driver=False)
    yield
    shoal.shutdown()


def note(path: str, name: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (name + "\n").encode())
    os.close(fd)


@shoal.remote(max_retries=-1)
def leaf(path: str, name: str, value: int, *others: Any) -> int:
    note(path, name)
    time.sleep(0.005)
    return value + sum(others)


@shoal.remote(max_retries=-1)
def planner(path: str, name: str) -> Any:
    """Hands on refs to tasks that have not run, each made from the one before; then its worker may die."""
    note(path, name)
    refs = [leaf.remote(path, f"{name}/{os.getpid()}/0", 1)]
    for number in range(1, 4):
        refs.append(leaf.remote(path, f"{name}/{os.getpid()}/{number}", 1, refs[-1]))
    return refs, [shoal.put(b"x" * 200_000)]


def killer(stop: threading.Event, rng: random.Random, kills: list[int]) -> None:
    while not stop.wait(rng.uniform(0.03, 0.15)):
        rows = core.current().call("node.workers")["workers"]
        pids = [row["pid"] for row in rows if row["lease_id"]]
        if pids:
            try:
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills.append(1)
            except ProcessLookupError:
                pass


@pytest.mark.parametrize("seed", range(2))
def test_refs_whose_owners_are_killed_at_random(tmp_path: Path, seed: int) -> None:
    path = str(tmp_path / "runs")
    before = settled_counts()
    stop, kills = threading.Event(), []
    thread = threading.Thread(target=killer, args=(stop, random.Random(seed), kills), daemon=True)
    thread.start()
    end = time.monotonic() + SECONDS
    made = 0
    try:
        while time.monotonic() < end:
            plans = [planner.remote(path, f"plan-{made + number}") for number in range(6)]
            made += len(plans)
            for refs, [put] in shoal.get(plans, timeout=GET_TIMEOUT_S):
                assert shoal.get(refs, timeout=GET_TIMEOUT_S) == [1, 2, 3, 4]
                assert len(shoal.get(put, timeout=GET_TIMEOUT_S)) == 200_000
    finally:
        stop.set()
        thread.join(10)
    runs = Counter(Path(path).read_text().split())
    extra = sum(count - 1 for name, count in runs.items() if "/" in name)
    assert kills, "nobody was killed"
    # A kill costs at most what its worker had begun, and what it had answered and nobody had read.
    assert extra <= 4 * len(kills), f"{extra} runs too many with {len(kills)} kills"
    del plans, refs, put
    wait_for_counts(before, within_s=5.0)
