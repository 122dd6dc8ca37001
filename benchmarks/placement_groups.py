"""How many placement groups can be created and removed in a second, on one node and over several.

    python benchmarks/placement_groups.py [--seconds 3] [--nodes 3]

One JSON line. A group is created, got (`get(ready())`: all of its bundles are placed and can be used) and removed before the next one.

    one_node_per_s            groups of two bundles on a lone node (budget 200)
    cluster_per_s             the same over `nodes` nodes, one bundle on each (STRICT_SPREAD): two phases over TCP
    pipelined_per_s           on one node, 50 groups created before the first is waited for
    placed_ms                 the median from the call of placement_group() until get(ready()) has returned, on the lone node
    first_task_ms             the median from there until the result of a task in the group is here
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import shoal
from shoal.testing import Cluster
from shoal.util import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

TIMEOUT_S = 30.0
PIPELINED = 50
FIRST_TASKS = 50


def nothing() -> None:
    """A task."""


def one_after_another(bundles: list[dict[str, float]], strategy: str, seconds: float) -> tuple[float, float]:
    """Groups a second, and the median of the milliseconds until one is placed."""
    placed = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        asked = time.perf_counter()
        group = placement_group(bundles, strategy=strategy)
        shoal.get(group.ready(), timeout=TIMEOUT_S)
        placed.append(time.perf_counter() - asked)
        remove_placement_group(group)
    return len(placed) / (time.perf_counter() - begun), statistics.median(placed) * 1e3


def many_at_a_time(seconds: float) -> float:
    """Groups a second, PIPELINED of them alive at a time."""
    count = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        groups = [placement_group([{"CPU": 0.01}, {"CPU": 0.01}]) for _ in range(PIPELINED)]
        shoal.get([group.ready() for group in groups], timeout=TIMEOUT_S)
        for group in groups:
            remove_placement_group(group)
        count += PIPELINED
    return count / (time.perf_counter() - begun)


def first_tasks() -> float:
    """The median of the milliseconds of a task in a new group."""
    task = shoal.remote(nothing)
    times = []
    for _ in range(FIRST_TASKS):
        group = placement_group([{"CPU": 1}])
        shoal.get(group.ready(), timeout=TIMEOUT_S)
        begun = time.perf_counter()
        strategy = PlacementGroupSchedulingStrategy(group, 0)
        shoal.get(task.options(scheduling_strategy=strategy).remote(), timeout=TIMEOUT_S)
        times.append(time.perf_counter() - begun)
        remove_placement_group(group)
    return statistics.median(times) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--nodes", type=int, default=3)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "placement_groups", "nodes": arguments.nodes}
    shoal.init(num_cpus=4, log_to_driver=False)
    one_after_another([{"CPU": 1}] * 2, "PACK", 0.3)
    per_s, placed_ms = one_after_another([{"CPU": 1}] * 2, "PACK", arguments.seconds)
    result["one_node_per_s"], result["placed_ms"] = round(per_s), round(placed_ms, 2)
    result["pipelined_per_s"] = round(many_at_a_time(arguments.seconds))
    result["first_task_ms"] = round(first_tasks(), 2)
    until = time.monotonic() + TIMEOUT_S
    while shoal.available_resources()["CPU"] != 4:  # when the last worker is dead
        assert time.monotonic() < until, "everything is given back"
        time.sleep(0.01)
    shoal.shutdown()
    with Cluster(num_cpus=2) as cluster:
        cluster.add_nodes(arguments.nodes - 1, num_cpus=2)
        cluster.connect(log_to_driver=False)
        bundles: list[dict[str, float]] = [{"CPU": 1}] * arguments.nodes
        one_after_another(bundles, "STRICT_SPREAD", 0.3)
        result["cluster_per_s"] = round(one_after_another(bundles, "STRICT_SPREAD", arguments.seconds)[0])
    result["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
