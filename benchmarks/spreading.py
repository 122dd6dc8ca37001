"""Does a backlog of short nested tasks on one node reach idle neighbours?

    python benchmarks/spreading.py [--nodes 1,2,4] [--tasks-ms 0.01,1,5] [--parents 4] [--seconds 2]

Nodes of 2 CPUs that pose as machines. Parents are pinned to the head; each submits children that sleep (so that this machine's CPUs do not
matter) and waits for them. One JSON line a point: seconds, the ideal (all children over all CPUs of the cluster), and which share of the children
ran away from the head. Tiny children are not meant to leave: their submitter is what they wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from typing import Any

import shoal
from shoal.testing import Cluster

TIMEOUT_S = 120.0
CPUS = 2


@shoal.remote
def child(seconds: float) -> str:
    """A leaf: where it ran."""
    if seconds >= 1e-4:
        time.sleep(seconds)
    else:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote(resources={"head": 0.01})
def parent(children: int, seconds: float) -> Counter[str]:
    """Where its children ran."""
    return Counter(shoal.get([child.remote(seconds) for _ in range(children)]))


def measure(nodes: int, parents: int, children: int, seconds: float) -> dict[str, Any]:
    """One point."""
    with Cluster(num_cpus=CPUS, resources={"head": 1}) as cluster:
        if nodes > 1:
            cluster.add_nodes(nodes - 1, num_cpus=CPUS)
        cluster.connect(log_to_driver=False)
        head = cluster.head.node_id
        shoal.get([parent.remote(10, seconds) for _ in range(2)], timeout=TIMEOUT_S)
        begun = time.perf_counter()
        places: Counter[str] = Counter()
        for found in shoal.get([parent.remote(children, seconds) for _ in range(parents)], timeout=TIMEOUT_S):
            places += found
        spent_s = time.perf_counter() - begun
    return {
        "benchmark": "spreading",
        "load": round(os.getloadavg()[0], 1),
        "nodes": nodes,
        "parents": parents,
        "children_each": children,
        "task_ms": seconds * 1e3,
        "seconds": round(spent_s, 3),
        "ideal_s": round(parents * children * seconds / (nodes * CPUS), 3),
        "share_elsewhere": round(1 - places[head] / places.total(), 3),
        "nodes_that_ran": len(places),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--tasks-ms", default="0.01,1,5")
    parser.add_argument("--parents", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="of work for the two CPUs of the head")
    options = parser.parse_args()
    for milliseconds in map(float, options.tasks_ms.split(",")):
        seconds = milliseconds / 1e3
        children = min(2000, max(1, round(options.seconds * CPUS / seconds / options.parents)))
        for nodes in map(int, options.nodes.split(",")):
            print(json.dumps(measure(nodes, options.parents, children, seconds)), flush=True)


if __name__ == "__main__":
    main()
