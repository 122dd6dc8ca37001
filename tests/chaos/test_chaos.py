"""A cluster of three nodes under fire: every result is that of the serial program, nothing hangs, nothing is left.

`SHOAL_CHAOS_SECONDS` is how long each workload runs (2), `SHOAL_CHAOS_SEED` draws victims and moments: `make chaos` runs for minutes. The moments
are the seed's, what a process does just then is not. The long version (10 s and more) has two shards of the GCS, a shuffle of 100 MB in stores
of 32 MB, placement groups, and nodes that are told to leave.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from tests.chaos.victims import Allowance, Killer, processes_of
from tests.chaos.workloads import MORE, WORKLOADS, Size

import shoal
from shoal.testing import Cluster

SECONDS = float(os.environ.get("SHOAL_CHAOS_SECONDS", "2"))
SEED = int(os.environ.get("SHOAL_CHAOS_SEED", "1"))
LONG = SECONDS >= 10
SETTLE_S = 60.0
STORE_BYTES = (32 if LONG else 16) << 20  #: of a node
DRAIN_GRACE_S = 5.0  #: of a node that is told to leave

KINDS = {
    "workers": ({"worker": 1.0}, 0.1 if LONG else 0.15),
    "servers": ({"worker": 4.0, "owner": 1.0, "zygote": 1.0, "gcs": 2.0}, 0.3),
    "nodes": ({"worker": 2.0, "owner": 1.0, "zygote": 1.0, "gcs": 1.0, "node": 1.5}, 1.0),
}
RUN = dict(WORKLOADS)
if LONG:
    KINDS["leaving"] = ({"worker": 2.0, "owner": 1.0, "leave": 3.0, "node": 1.0}, 1.0)
    RUN |= MORE


@dataclass
class Fire:
    """The cluster, and what was done to it."""

    cluster: Cluster
    owners: str
    allowance: Allowance = field(default_factory=Allowance)
    killed: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    compared: int = 0

    def add_node(self) -> None:
        """One more; nobody waits for it."""
        self.cluster.add_node(
            num_cpus=2,
            object_store_memory=STORE_BYTES,
            resources={"spare": 2},
            drain_grace=DRAIN_GRACE_S,
            wait=False,
        )

    def killer(self, seed: int, victims: dict[str, float], pause_s: float) -> Killer:
        """Who kills."""
        return Killer(self.cluster, seed, victims, pause_s, self.add_node, self.allowance, self.owners)


@pytest.fixture(scope="module")
def fire() -> Iterator[Fire]:
    shoal.shutdown()
    settings = {"gcs_shards": 2} if LONG else {}
    with (
        tempfile.TemporaryDirectory() as owners,
        Cluster(num_cpus=2, object_store_memory=STORE_BYTES, **settings) as cluster,
    ):
        made = Fire(cluster, owners)
        for _ in range(2):
            made.add_node()
        cluster.wait_for_nodes()
        cluster.connect(log_to_driver=False)
        yield made
        shoal.shutdown()


@pytest.mark.timeout(SECONDS * 2 + 400)
@pytest.mark.parametrize("kinds", list(KINDS))
@pytest.mark.parametrize("workload", list(RUN))
def test_results_are_those_of_the_serial_program(fire: Fire, workload: str, kinds: str) -> None:
    dice = random.Random(f"{SEED} {workload} {kinds}")
    size = Size(32, 390_000, 8, fire.owners) if LONG else Size(8, 500_000, 4, fire.owners)
    victims, pause_s = KINDS[kinds]
    rounds, end = 0, time.monotonic() + SECONDS
    with fire.killer(dice.randrange(1 << 30), victims, pause_s) as killer:
        while time.monotonic() < end or not (killer.killed.total() or killer.error):
            fire.compared += RUN[workload](dice, size)
            rounds += 1
    fire.killed.update(killer.killed)
    fire.rounds[workload] += rounds
    assert rounds and killer.killed.total()
    if LONG:
        settle(lambda: what_is_left(fire.cluster))
        print(f"\n{workload}, {kinds}: {rounds} rounds, killed {dict(killer.killed)}, nothing left")


@pytest.mark.timeout(200)
def test_nothing_is_left_in_the_end(fire: Fire) -> None:
    cluster = fire.cluster
    settle(lambda: what_is_left(cluster))
    stores = [node.call("node.stats")["store"] for node in cluster.nodes]
    folders = [node.session_dir for node in cluster.nodes]
    shoal.shutdown()
    cluster.shutdown()
    settle(lambda: [found for folder in folders if (found := processes_of(folder) or os.path.exists(folder))])
    print(
        f"\n{fire.killed.total()} kills: {dict(fire.killed)}\nworkloads run: {dict(fire.rounds)}, {fire.compared} results compared with the "
        f"serial program\nspilled on the nodes that lived to the end: {sum(store['spills'] for store in stores)} objects\nno lease, "
        "object, byte, CPU, process or folder was left"
        + (f" after each of {len(RUN) * len(KINDS)} workloads" if LONG else "")
    )


def settle(left: Callable[[], object]) -> None:
    """Wait until nothing is left."""
    deadline = time.monotonic() + SETTLE_S
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def what_is_left(cluster: Cluster) -> str:
    """Leases, objects, bytes and CPUs that somebody still holds, on any node."""
    for node in list(cluster.nodes):
        stats, resources = node.call("node.stats"), node.call("node.resources")
        held = {
            "leases": stats["scheduler"]["leases"],
            "waiting": stats["scheduler"]["classes_waiting"],
            "objects": stats["objects"]["objects"],
            "stored": stats["store"]["objects"],
            "bytes": stats["store"]["resident_bytes"],
            "reading": stats["room"]["reading"] + stats["room"]["waiting"],
        }
        if any(held.values()) or resources["available"]["CPU"] != resources["total"]["CPU"]:
            rows = node.call("node.stored")["stored"] + node.call("node.objects")["objects"]
            return f"{node}: {held}, {resources}\n" + "\n".join(map(str, rows[:50]))
    return ""
