"""Locality-aware placement on and off (paper figure 8a): tasks on two nodes, each with one random dependency of a given size.

    python benchmarks/locality.py [--tasks 200] [--sizes 100e3,1e6,10e6,100e6]

For each size one array lies on each of two nodes; tasks take one of the two at random, and may run on either node. One JSON line: mean milliseconds a
task (all of them submitted at once, their number divided into the time until the last has ended), with locality (`on`), without (`off`),
and how many copies of the arrays were pulled. In each round the arrays are made anew, so that no copy of an earlier one helps; a round has
TASKS_PER_ARRAY tasks an array, which is what the paper's "random object dependency" leaves open.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from typing import Any

import numpy as np

import shoal
from shoal.runtime import core
from shoal.testing import Cluster

GB = 1 << 30
TIMEOUT_S = 120
TASKS_PER_ARRAY = 1


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
    there = make.options(resources={"there": 0.001})
    here = make.options(resources={"here": 0.001})
    at_once = max(2, min(tasks, int(0.3 * GB / size)))
    before = sum(node.call("node.stats")["cluster"]["pulled"] for node in cluster.nodes)
    spent_s, done = 0.0, 0
    while done < tasks:
        count = min(at_once, tasks - done)
        arrays = [dice.choice((here, there)).remote(size) for _ in range(-(-count // TASKS_PER_ARRAY))]
        shoal.wait(arrays, num_returns=len(arrays), timeout=TIMEOUT_S, fetch_local=False)
        start = time.perf_counter()
        shoal.get([take.remote(arrays[index // TASKS_PER_ARRAY]) for index in range(count)], timeout=TIMEOUT_S)
        spent_s += time.perf_counter() - start
        done += count
        del arrays
    pulled = sum(node.call("node.stats")["cluster"]["pulled"] for node in cluster.nodes) - before
    return {"ms": round(spent_s / tasks * 1e3, 3), "pulled": pulled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--sizes", default="100e3,1e6,10e6,100e6")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"load": os.getloadavg()[0], "tasks": chosen.tasks, "sizes": {}}
    with Cluster(num_cpus=1, object_store_memory=GB, resources={"here": 1}) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=GB)
        cluster.connect(log_to_driver=False)
        dice = random.Random(1)
        measure(cluster, 100_000, 50, True, dice)
        for size in map(int, map(float, chosen.sizes.split(","))):
            # The same choices for both.
            points = {
                name: measure(cluster, size, chosen.tasks, name == "on", random.Random(2)) for name in ("on", "off")
            }
            result["sizes"][str(size)] = points
    print(json.dumps(result))


if __name__ == "__main__":
    main()
