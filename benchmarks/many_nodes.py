"""Many nodes that pose as machines: do they start, share the work, and end clean?

    python benchmarks/many_nodes.py [--nodes 50] [--tasks 100000] [--actors 100] [--json out/many_nodes.jsonl]

Every node has 2 CPUs. A tenth of the tasks are parents, which submit nine children each, wherever there is room, and wait for them; children of every
tenth parent call an actor, which lives on any node. All results are checked, and afterwards that no process, no folder and no socket is left.

One JSON line: seconds for the start, the tasks and the end; tasks a second; how many nodes took part; what was left (nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

import shoal
from shoal.testing import Cluster

CHILDREN = 9
TIMEOUT_S = 1200.0
MARK = "SHOAL_MANY_NODES"  #: all processes that come of this one inherit it


@shoal.remote(num_cpus=1)
def child(number: int, actor: Any, seconds: float) -> tuple[int, str]:
    """A leaf: twice its number, and where it ran."""
    time.sleep(seconds)
    if actor is not None:
        shoal.get(actor.add.remote(1))
    return 2 * number, shoal.get_runtime_context().get_node_id()


@shoal.remote(num_cpus=1)
def parent(number: int, actor: Any, seconds: float) -> tuple[int, Counter[str]]:
    """The sum of what its children return, and where they and it ran."""
    results = shoal.get([child.remote(number + index, actor, seconds) for index in range(CHILDREN)])
    places = Counter(place for _, place in results)
    places[shoal.get_runtime_context().get_node_id()] += 1
    return sum(value for value, _ in results), places


@shoal.remote(num_cpus=0)
class Tally:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, more: int) -> int:
        """The count after adding `more`."""
        self.count += more
        return self.count

    def where(self) -> str:
        """Where it lives."""
        return str(shoal.get_runtime_context().get_node_id())


def work(tasks: int, actors: int, leaf_s: float) -> dict[str, Any]:
    """Run the tasks, whose leaves take `leaf_s`; what became of them.

    Raises:
        AssertionError: a result is wrong.
    """
    tallies = [Tally.options(scheduling_strategy="SPREAD").remote() for _ in range(actors)]
    homes = set(shoal.get([tally.where.remote() for tally in tallies], timeout=TIMEOUT_S))
    parents = tasks // (CHILDREN + 1)
    begun = time.perf_counter()
    places: Counter[str] = Counter()
    of_tenth = {number: tallies[number // 10 % actors] for number in range(0, parents, 10) if tallies}
    refs = [parent.remote(number, of_tenth.get(number), leaf_s) for number in range(parents)]
    for number, (total, ran) in enumerate(shoal.get(refs, timeout=TIMEOUT_S)):
        assert total == sum(2 * (number + index) for index in range(CHILDREN)), number
        places += ran
    seconds = time.perf_counter() - begun
    assert places.total() == parents * (CHILDREN + 1)
    called = CHILDREN * len(range(0, parents, 10)) if tallies else 0
    assert sum(shoal.get([tally.add.remote(0) for tally in tallies], timeout=TIMEOUT_S)) == called
    return {
        "tasks": places.total(),
        "actor_calls": called,
        "seconds": round(seconds, 2),
        "tasks_per_s": round(places.total() / seconds),
        "nodes_that_ran_tasks": len(places),
        "nodes_with_actors": len(homes),
        "most_on_a_node": max(places.values()),
        "fewest_on_a_node": min(places.values()),
    }


def left_behind(folders: list[str], within_s: float = 10.0) -> list[str]:
    """Processes and folders that are still there `within_s` after the end."""
    mark = os.environ[MARK]
    deadline = time.monotonic() + within_s
    while True:
        left = [folder for folder in folders if os.path.exists(folder)]
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                    left.append(f"{process.pid} {' '.join(process.cmdline())}")
            except (psutil.Error, OSError):
                continue
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def measure(nodes: int, tasks: int, actors: int, leaf_s: float = 0.0) -> dict[str, Any]:
    """All of it, once."""
    os.environ[MARK] = os.urandom(8).hex()
    begun = time.perf_counter()
    cluster = Cluster(num_cpus=2)
    try:
        cluster.add_nodes(nodes - 1, num_cpus=2)
        started_s = time.perf_counter() - begun
        folders = [node.session_dir for node in cluster.nodes]
        cluster.connect(log_to_driver=False)
        found = work(tasks, actors, leaf_s)
        begun = time.perf_counter()
    finally:
        cluster.shutdown()
    stopped_s = time.perf_counter() - begun
    return {
        "nodes": nodes,
        "start_s": round(started_s, 2),
        **found,
        "stop_s": round(stopped_s, 2),
        "left_behind": left_behind(folders),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--actors", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.nodes, options.tasks, options.actors)
    line = json.dumps({"benchmark": "many_nodes", "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **found})
    print(line)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a") as file:
            file.write(line + "\n")
    if found["left_behind"]:
        raise SystemExit("something is left behind")


if __name__ == "__main__":
    main()
