"""A cluster of three nodes under fire: every result is that of the serial program, nothing hangs, nothing is left.

`SHOAL_CHAOS_SECONDS` is how long each workload runs (2), `SHOAL_CHAOS_SEED` draws victims and moments: `make chaos` runs for minutes. The moments
are the seed's, what a process does just then is not.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.chaos.victims import Killer, processes_of
from tests.chaos.workloads import WORKLOADS

import shoal
from shoal.testing import Cluster

SECONDS = float(os.environ.get("SHOAL_CHAOS_SECONDS", "2"))
SEED = int(os.environ.get("SHOAL_CHAOS_SEED", "1"))
SETTLE_S = 60.0

KINDS = {
    "workers": ({"worker": 1.0}, 0.1),
    "servers": ({"worker": 5.0, "zygote": 1.0, "gcs": 2.0}, 0.3),
    "nodes": ({"worker": 3.0, "zygote": 1.0, "gcs": 1.0, "node": 1.5}, 1.0),
}

STORE_BYTES = 96 << 20  #: of a node

killed: Counter[str] = Counter()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    shoal.shutdown()
    with Cluster(num_cpus=2, object_store_memory=STORE_BYTES) as made:
        for _ in range(2):
            made.add_node(num_cpus=2, object_store_memory=STORE_BYTES, resources={"spare": 2})
        made.connect(log_to_driver=False)
        yield made
        shoal.shutdown()


@pytest.mark.timeout(SECONDS * 2 + 300)
@pytest.mark.parametrize("kinds", list(KINDS))
@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_results_are_those_of_the_serial_program(cluster: Cluster, workload: str, kinds: str) -> None:
    dice = random.Random(f"{SEED} {workload} {kinds}")
    victims, pause_s = KINDS[kinds]
    rounds, end = 0, time.monotonic() + SECONDS
    with Killer(cluster, dice.randrange(1 << 30), victims, pause_s, STORE_BYTES) as killer:
        while time.monotonic() < end or not (killer.killed.total() or killer.error):
            WORKLOADS[workload](dice)
            rounds += 1
    killed.update(killer.killed)
    assert rounds and killer.killed.total()


@pytest.mark.timeout(200)
def test_nothing_is_left_in_the_end(cluster: Cluster) -> None:
    print(f"killed: {dict(killed)}")
    deadline = time.monotonic() + SETTLE_S
    while left := what_is_left(cluster):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    folders = [node.session_dir for node in cluster.nodes]
    shoal.shutdown()
    cluster.shutdown()
    deadline = time.monotonic() + SETTLE_S
    while any(processes_of(folder) for folder in folders) or any(os.path.exists(folder) for folder in folders):
        assert time.monotonic() < deadline, [processes_of(folder) for folder in folders]
        time.sleep(0.1)


def what_is_left(cluster: Cluster) -> str:
    """Leases, objects, bytes and CPUs that somebody still holds, on any node."""
    for node in cluster.nodes:
        stats, resources = node.call("node.stats"), node.call("node.resources")
        held = {
            "leases": stats["scheduler"]["leases"],
            "waiting": stats["scheduler"]["classes_waiting"],
            "objects": stats["objects"]["objects"],
            "stored": stats["store"]["objects"],
            "bytes": stats["store"]["resident_bytes"],
        }
        if any(held.values()) or resources["available"]["CPU"] != resources["total"]["CPU"]:
            rows = node.call("node.stored")["stored"] + node.call("node.objects")["objects"]
            return f"{node}: {held}, {resources}\n" + "\n".join(map(str, rows[:50]))
    return ""
