"""Locality-aware placement on and off (paper figure 8a): tasks on two nodes, each with one random dependency of a given size.

    python benchmarks/locality.py [--tasks 200] [--sizes 100e3,1e6,10e6,100e6]

For each size arrays are made on two nodes, each on one that the dice choose; then a task takes each of them, which may run on either node. One
JSON line: milliseconds from a task's submission to its result, mean and median, with locality (`on`) and without (`off`), and how many arrays were
pulled. No array is used twice, so no copy helps. The first task of a round on each node is not counted: it has to ask for a lease.

Tasks run one at a time, so a latency is a latency. Without locality nothing is to be gained by going elsewhere then, so they are sent to a random
node, which is what the paper's unaware policy comes to: half of them find their array at home.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from typing import Any

import numpy as np

import shoal
from shoal.runtime import core
from shoal.testing import Cluster

GB = 1 << 30
TIMEOUT_S = 60
KEPT_BYTES = 400e6  #: of arrays at once; the rest of the store is for copies
PLACES = ("here", "there")


@shoal.remote(num_cpus=0)
def make(size: int) -> np.ndarray:
    """An array."""
    return np.ones(size, dtype=np.uint8)


@shoal.remote
def take(array: np.ndarray) -> int:
    """A task with a large input."""
    return int(array[0])


def measure(cluster: Cluster, size: int, tasks: int, on: bool, dice: random.Random) -> dict[str, Any]:
    """One point of the figure."""
    core.current().locality.enabled = on
    makers = {place: make.options(resources={place: 0.001}) for place in PLACES}
    takers = {place: take.options(resources={place: 0.001}) for place in PLACES}
    before = sum(node.call("node.stats")["cluster"]["pulled"] for node in cluster.nodes)
    times_s: list[float] = []
    while len(times_s) < tasks:
        count = min(max(6, int(KEPT_BYTES / size)), 100)
        arrays = [(place, makers[place].remote(size)) for place in [*PLACES, *dice.choices(PLACES, k=count)]]
        shoal.wait([array for _, array in arrays], num_returns=len(arrays), timeout=TIMEOUT_S, fetch_local=False)
        for number, (place, array) in enumerate(arrays):
            counts = number >= len(PLACES)
            taker = take if on else takers[dice.choice(PLACES) if counts else place]
            start = time.perf_counter()
            assert shoal.get(taker.remote(array), timeout=TIMEOUT_S) == 1
            if counts:
                times_s.append(time.perf_counter() - start)
        del arrays, array  # giving back memory is not part of a task
    pulled = sum(node.call("node.stats")["cluster"]["pulled"] for node in cluster.nodes) - before
    mean, median = statistics.fmean(times_s), statistics.median(times_s)
    return {"mean_ms": round(mean * 1e3, 3), "median_ms": round(median * 1e3, 3), "pulled": pulled}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--sizes", default="100e3,1e6,10e6,100e6")
    chosen = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "locality",
        "load": round(os.getloadavg()[0], 1),
        "tasks": chosen.tasks,
        "sizes": {},
    }
    with Cluster(num_cpus=1, object_store_memory=GB, resources={"here": 1}) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=GB)
        cluster.connect(log_to_driver=False)
        measure(cluster, 1_000_000, 20, True, random.Random(1))
        for size in map(int, map(float, chosen.sizes.split(","))):
            result["sizes"][str(size)] = {
                name: measure(cluster, size, chosen.tasks, name == "on", random.Random(2)) for name in ("on", "off")
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
