"""What the death of actors costs: calls run again and time until all answer, with checkpoints and without (paper figure 11b).

    python benchmarks/actor_recovery.py [--actors 16] [--calls 255] [--call-ms 1] [--intervals 10,100,0] [--kill node|process]

Actors make `calls` calls each; then half of them are killed at once, with their node or each process by `kill -9`. For each interval one JSON line
tells how many calls ran again in all, and how long it took from the kill until every actor had answered with its exact state. Interval 0 means no
checkpoint after the constructor: all calls since are replayed, as in the paper without checkpoints. The last line has the cost of checkpoints
when nothing dies: us a call, one at a time and in batches, without and with `checkpoint_interval=100`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time
from typing import Any

import shoal
from shoal.runtime import core
from shoal.testing import Cluster

TIMEOUT_S = 300
NEVER = 1 << 30
executed = 0  #: calls that this process has run


class Simulator:
    """A state that each call changes, in `call_s`."""

    def __init__(self, call_s: float) -> None:
        self.call_s = call_s
        self.sum = 0

    def step(self, number: int) -> int:
        global executed
        executed += 1
        time.sleep(self.call_s)
        self.sum = (31 * self.sum + number) % 1_000_003
        return self.sum

    def add(self) -> int:
        self.sum += 1
        return self.sum

    @shoal.method(read_only=True)
    def look(self) -> tuple[int, int, str, int]:
        """State, calls that this process has run, where it lives."""
        return self.sum, executed, str(shoal.get_runtime_context().get_node_id()), os.getpid()


def expected(calls: int) -> int:
    """The state of the serial program."""
    total = 0
    for number in range(calls):
        total = (31 * total + number) % 1_000_003
    return total


def kill_half(kill: str, cluster: Cluster, actors: list[Any], looks: list[Any]) -> int:
    """Kill about half of the actors; how many."""
    if kill == "node":
        victim = cluster.nodes[-1]
        hit = sum(node == victim.node_id for _, _, node, _ in looks)
        cluster.remove_node(victim, kill=True)
        return hit
    ids = {actor._actor_id.binary() for actor in actors[: len(actors) // 2]}
    rows = [row for row in core.current().call("node.workers")["workers"] if row["actor_id"] in ids]
    for row in rows:
        os.kill(row["pid"], signal.SIGKILL)
    return len(rows)


def recovery(options: argparse.Namespace, interval: int) -> dict[str, Any]:
    """One experiment in a cluster of its own."""
    by_node = options.kill == "node"
    cluster = Cluster(num_cpus=1 if by_node else options.actors)
    try:
        for _ in range(2 if by_node else 0):
            cluster.add_node(num_cpus=options.actors, resources={"out": options.actors})
        cluster.connect(log_to_driver=False)
        resources = {"out": 1} if by_node else {}
        actor_class = shoal.remote(checkpoint_interval=interval or NEVER, num_cpus=1, resources=resources)(Simulator)
        actors = [actor_class.remote(options.call_ms / 1000) for _ in range(options.actors)]
        shoal.get([actor.step.remote(i) for i in range(options.calls) for actor in actors], timeout=TIMEOUT_S)
        looks = shoal.get([actor.look.remote() for actor in actors], timeout=TIMEOUT_S)
        begun = time.perf_counter()
        hit = kill_half(options.kill, cluster, actors, looks)
        after = shoal.get([actor.look.remote() for actor in actors], timeout=TIMEOUT_S)
        seconds = time.perf_counter() - begun
        wrong = sum(state != expected(options.calls) for state, *_ in after)
        assert not wrong, f"{wrong} actors have a wrong state"
        again = sum(now[1] for before, now in zip(looks, after, strict=True) if now[3] != before[3])
        return {
            "benchmark": "actor_recovery",
            "kill": options.kill,
            "checkpoint_interval": interval,
            "actors": options.actors,
            "killed": hit,
            "calls": options.actors * options.calls,
            "calls_run_again": again,
            "seconds_to_recover": round(seconds, 3),
        }
    finally:
        cluster.shutdown()


def overhead() -> dict[str, Any]:
    """us a call without deaths."""
    shoal.init(num_cpus=2, log_to_driver=False)
    actors = {
        "plain": shoal.remote(Simulator).remote(0.0),
        "interval_100": shoal.remote(checkpoint_interval=100)(Simulator).remote(0.0),
    }

    def one_at_a_time(actor: Any, count: int = 2000) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            shoal.get(actor.add.remote())
        return (time.perf_counter() - begun) / count * 1e6

    def in_batches(actor: Any, count: int = 5000) -> float:
        begun = time.perf_counter()
        shoal.get([actor.add.remote() for _ in range(count)])
        return (time.perf_counter() - begun) / count * 1e6

    times: dict[str, list[float]] = {}
    for turn in range(8):
        for name, actor in actors.items():
            for way in (one_at_a_time, in_batches):
                spent = way(actor)
                if turn:  # the first warms up
                    times.setdefault(f"{way.__name__}_{name}_us", []).append(spent)
    shoal.shutdown()
    row: dict[str, Any] = {"benchmark": "actor_recovery", "experiment": "overhead"}
    row |= {name: round(statistics.median(spent), 1) for name, spent in times.items()}
    for way in ("one_at_a_time", "in_batches"):
        row[f"{way}_ratio"] = round(row[f"{way}_interval_100_us"] / row[f"{way}_plain_us"], 2)
    return row


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--calls", type=int, default=255)
    parser.add_argument("--call-ms", type=float, default=1.0)
    parser.add_argument("--intervals", default="10,100,0")
    parser.add_argument("--kill", choices=("node", "process"), default="node")
    options = parser.parse_args()
    for interval in options.intervals.split(","):
        print(json.dumps(recovery(options, int(interval))), flush=True)
    print(json.dumps(overhead()), flush=True)


if __name__ == "__main__":
    main()
