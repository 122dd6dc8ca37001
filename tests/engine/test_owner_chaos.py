"""Workers and owners are killed at random while nested work runs, and each task notes each of its runs.

Every result is right, and nothing runs more often than a death can explain. Kills are paced by the work, not by the clock: on a slow machine
workers would die before they have begun anything. `SHOAL_OWNER_PLANS` is how many plans there are.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.nested_plans import planner
from tests.engine.node_counts import settled_counts, wait_for_counts

import shoal
from shoal.runtime import core

PLANS = int(os.environ.get("SHOAL_OWNER_PLANS", "36"))
AT_ONCE = 6
GET_TIMEOUT_S = 60
LOOK_S = 0.002


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=4, log_to_driver=False)
    yield
    shoal.shutdown()


class Killer(threading.Thread):
    """Kills a worker with a lease each time that some tasks have begun."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self.path, self.dice = path, random.Random(seed)
        self.kills = 0
        self.stop = threading.Event()

    def run(self) -> None:
        seen = 0
        while not self.stop.wait(LOOK_S):
            size = self.path.stat().st_size
            if size - seen < self.dice.randrange(30, 600):  # bytes of notes, about 20 each
                continue
            seen = size
            rows = core.current().call("node.workers")["workers"]
            pids = [row["pid"] for row in rows if row["lease_id"]]
            if pids:
                try:
                    os.kill(self.dice.choice(pids), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass


@pytest.mark.parametrize("seed", range(2))
def test_refs_whose_owners_are_killed_at_random(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "runs"
    path.touch()
    before = settled_counts()
    killer = Killer(path, seed)
    killer.start()
    try:
        for first in range(0, PLANS, AT_ONCE):
            plans = [planner.remote(str(path), f"plan-{first + number}") for number in range(AT_ONCE)]
            for refs, [put] in shoal.get(plans, timeout=GET_TIMEOUT_S):
                assert shoal.get(refs, timeout=GET_TIMEOUT_S) == [1, 2, 3, 4]
                assert len(shoal.get(put, timeout=GET_TIMEOUT_S)) == 200_000
    finally:
        killer.stop.set()
        killer.join(60)
    assert killer.kills, "nobody was killed"
    runs = Counter(path.read_text().split())
    extra = sum(count - 1 for name, count in runs.items() if "/" in name)
    # A kill costs at most what its worker had begun, and what it had answered and nobody had read.
    assert extra <= 4 * killer.kills, f"{extra} runs too many with {killer.kills} kills"
    del plans, refs, put
    wait_for_counts(before)
    log = Path(core.current().config["log_path"]).read_text()
    assert "internal error" not in log, log[-4000:]
