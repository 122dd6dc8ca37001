"""What the death of a node costs a chain of tasks: each task takes 10 ms and the result of the one before.

    python benchmarks/recovery.py [--tasks 1000] [--size 100 200000]

Three nodes on one machine: a head with the driver, and two that could run the chain; the one that runs it is killed at half time. With small results
the owner has what was made; with results in the store all that lay there is gone, and as the chain has freed what it used, it begins anew. One
JSON line for each size of the results: seconds without and with the death, and how many tasks ran.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from typing import Any

import shoal
from shoal.testing import Cluster

TASK_S = 0.010
TIMEOUT_S = 300


@shoal.remote(resources={"chain": 1})
def link(runs: str, node: str, size: int, before: Any) -> bytes:
    """One task of the chain; it notes that it runs, and where."""
    with open(runs, "a") as file:
        file.write(".")
    with open(node, "w") as file:
        file.write(str(shoal.get_runtime_context().get_node_id()))
    time.sleep(TASK_S)
    return b"x" * size


def run_chain(cluster: Cluster, tasks: int, size: int, kill_after_s: float | None) -> tuple[float, int]:
    """Seconds that the chain takes, and how often a task has run."""
    folder = tempfile.mkdtemp()
    runs, place = os.path.join(folder, "runs"), os.path.join(folder, "node")

    def kill() -> None:
        with open(place) as file:
            name = file.read()
        for node in list(cluster.nodes):
            if node.node_id == name and not node.is_head:
                cluster.remove_node(node, kill=True)

    start = time.perf_counter()
    timer = threading.Timer(kill_after_s, kill) if kill_after_s is not None else None
    if timer is not None:
        timer.start()
    ref = shoal.put(b"")
    for _ in range(tasks):
        ref = link.remote(runs, place, size, ref)
    shoal.get(ref, timeout=TIMEOUT_S)
    taken_s = time.perf_counter() - start
    if timer is not None:
        timer.cancel()
    with open(runs) as file:
        return taken_s, len(file.read())


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs="+", default=[100, 200_000], help="bytes of each result")
    options = parser.parse_args()
    for size in options.size:
        with Cluster(num_cpus=1) as cluster:
            for _ in range(2):
                cluster.add_node(num_cpus=1, resources={"chain": 1})
            cluster.connect(log_to_driver=False)
            run_chain(cluster, 20, size, None)
            plain_s, _ = run_chain(cluster, options.tasks, size, None)
            killed_s, ran = run_chain(cluster, options.tasks, size, plain_s / 2)
        figures = {"bytes": size, "tasks": options.tasks, "plain_s": round(plain_s, 2), "killed_s": round(killed_s, 2)}
        print(json.dumps({**figures, "cost_s": round(killed_s - plain_s, 2), "runs": ran}), flush=True)


if __name__ == "__main__":
    main()
