"""What another node costs: two nodes on this machine, over real TCP on loopback.

    python benchmarks/cluster.py [--rounds 7] [--json out/cluster.jsonl]

One JSON line. Each pair of figures (here, on the other node) is taken in turns, so that what else the machine does meets both alike.

    sync_task_us          get(f.remote()) with a lease that is held: on the driver's node, on the other one, and the ratio (budget 2.5)
    actor_call_us         the same with an actor's method
    batch_tasks_per_s     1,000 tasks submitted, then got
    lease_ms              from .remote() of a function nobody has a lease for until the grant is here, workers being idle (budget 1 ms)
    first_task_ms         the same until its result is here: with the connection to a worker that was never spoken to
    join_ms               from the GCS's acceptance of a new node until all nodes know of it (budget 200 ms)
    start_ms              from the call that starts a node until all nodes know of it
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shoal
from shoal.protocol.messages import LeaseGranted
from shoal.runtime import core
from shoal.testing import Cluster, ClusterNode

SYNC_TASKS = 1000
BATCH = 1000
CLASSES = 24
TIMEOUT_S = 60.0


def nothing() -> None:
    """A task."""


class Actor:
    """An actor."""

    def call(self) -> None:
        """A call."""


def one_at_a_time(once: Callable[[], Any]) -> float:
    """Microseconds of one, the median over many."""
    times = []
    for _ in range(SYNC_TASKS):
        begun = time.perf_counter()
        shoal.get(once(), timeout=TIMEOUT_S)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def batch(once: Callable[[], Any]) -> float:
    """Tasks a second."""
    begun = time.perf_counter()
    shoal.get([once() for _ in range(BATCH)], timeout=TIMEOUT_S)
    return BATCH / (time.perf_counter() - begun)


class Grants:
    """When the last lease was granted to this driver."""

    def __init__(self) -> None:
        self.at = 0.0
        handlers = core.current().reactor.handlers
        self._then = handlers[LeaseGranted]
        handlers[LeaseGranted] = self._take

    def _take(self, connection: Any, message: Any) -> None:
        self.at = time.perf_counter()
        self._then(connection, message)


def fresh_leases(grants: Grants, resource: str) -> tuple[list[float], list[float]]:
    """Milliseconds until the grant, and until the result, of tasks each of which needs a lease of its own."""
    function = shoal.remote(nothing)
    granted, done = [], []
    for number in range(CLASSES):
        once = function.options(num_cpus=1, resources={resource: 0.001 * (number + 1)})
        begun = time.perf_counter()
        shoal.get(once.remote(), timeout=TIMEOUT_S)
        done.append((time.perf_counter() - begun) * 1e3)
        granted.append((grants.at - begun) * 1e3)
        time.sleep(0.002)
    return granted, done


def settle(node: ClusterNode, resource: str, workers: int) -> None:
    """Until a node has so many idle workers, and no lease."""
    wait = shoal.remote(lambda: time.sleep(0.5)).options(num_cpus=1, resources={resource: 0.5 / CLASSES})
    shoal.get([wait.remote() for _ in range(CLASSES)], timeout=TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        found = node.call("node.stats")["scheduler"]
        if found["workers_idle"] >= workers and not found["leases"]:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{node!r} does not come to rest: {found}")
        time.sleep(0.05)


def joins(cluster: Cluster, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the acceptance, and from the start, of new nodes until everybody knows them."""
    joined, started = [], []
    for _ in range(count):
        begun = time.time()
        node = cluster.add_node(num_cpus=1, wait=False)
        cluster.wait_for_nodes()
        now = time.time()
        rows = cluster.head.call("gcs.nodes")["nodes"]
        accepted = next(row["joined_s"] for row in rows if row["node_id"].hex() == node.node_id)
        joined.append((now - accepted) * 1e3)
        started.append((now - begun) * 1e3)
    return joined, started


def measure(rounds: int) -> dict[str, Any]:
    """All figures, as medians."""
    found: dict[str, list[float]] = {}

    def note(name: str, *values: float) -> None:
        found.setdefault(name, []).extend(values)

    with Cluster(num_cpus=CLASSES, resources={"here": 1}) as cluster:
        other = cluster.add_node(num_cpus=CLASSES, resources={"there": 1})
        cluster.connect(log_to_driver=False)
        grants = Grants()
        places = {"here": cluster.head, "there": other}
        function, actor = shoal.remote(nothing), shoal.remote(Actor)
        tasks = {place: function.options(resources={place: 0.5}) for place in places}
        actors = {place: actor.options(num_cpus=0, resources={place: 0.01}).remote() for place in places}
        for number in range(rounds):
            for place in places:
                once = tasks[place].remote
                batch(once)
                note(f"sync_task_us_{place}", one_at_a_time(once))
                note(f"batch_tasks_per_s_{place}", batch(once))
                note(f"actor_call_us_{place}", one_at_a_time(actors[place].call.remote))
            if number < 3:
                for place, node in places.items():
                    settle(node, place, CLASSES - 2)
                    granted, done = fresh_leases(grants, place)
                    note(f"lease_ms_{place}", *granted)
                    note(f"first_task_ms_{place}", *done)
        joined, started = joins(cluster, 3)
        note("join_ms", *joined)
        note("start_ms", *started)
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    pairs = ("sync_task_us", "actor_call_us")
    ratios = [
        (a, statistics.median(t / h for h, t in zip(found[f"{a}_here"], found[f"{a}_there"], strict=True)))
        for a in pairs
    ]
    return {**medians, **{f"{name.removesuffix('_us')}_ratio": round(ratio, 2) for name, ratio in ratios}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    line = json.dumps({"benchmark": "cluster", "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **measure(options.rounds)})
    print(line)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
