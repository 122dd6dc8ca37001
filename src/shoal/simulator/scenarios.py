"""Questions to a cluster that nobody has: each scenario builds one, runs it, and gives rows of figures.

    linear      paper figure 8b: every node's driver submits empty tasks; 1.8 M tasks/s on 100 nodes of 64 cores in the paper
    growth      from 1 to 10,000 nodes: work that stays on its node, and work that one driver sends everywhere; what saturates first
    latency     paper figure 12b: rounds of an allreduce over 16 nodes with a delay in front of every scheduling decision
    evolution   generations of evolution strategies on up to 8,192 cores, with measured episode times (paper figure 14a)

How to extend: a function that gives rows, and its name in `SCENARIOS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from shoal.simulator.cluster import Cluster
from shoal.simulator.tasks import Task
from shoal.simulator.world import Costs

Row = dict[str, Any]


def _row(cluster: Cluster, begun_at: float, began: float, **more: Any) -> Row:
    report = asdict(cluster.report(begun_at))
    unfinished = len(cluster.unfinished())
    assert not unfinished, f"{unfinished} tasks have not ended"
    duration = report["duration_s"]
    return {
        **more,
        "nodes": report["nodes"],
        "tasks": report["tasks"],
        "virtual_s": round(duration, 4),
        "tasks_s": round(report["tasks_s"]),
        "start_p50_ms": round(report["latency_s"]["p50"] * 1e3, 3),
        "start_p99_ms": round(report["latency_s"]["p99"] * 1e3, 3),
        "tasks_a_node": report["balance"],
        "gcs_messages_s": round(report["messages"].get("GCS", 0) / duration),
        "daemon_messages_s": round(report["messages"].get("node daemon", 0) / duration),
        "messages": report["messages_by_type"],
        "busy": {name: round(share, 4) for name, share in report["busy"].items()},
        "real_s": round(time.perf_counter() - began, 2),
    }


def _ready(seed: int, nodes: int, cpus: int, costs: Costs | None = None) -> Cluster:
    """A cluster whose nodes have joined and said what they have. The messages of joining are not in the figures."""
    cluster = Cluster(seed, nodes, cpus, costs, joined=True)
    cluster.settle(1.0)
    cluster.world.messages.clear()
    cluster.forget_busy()
    return cluster


def linear(seed: int, nodes: int = 100, cpus: int = 64, tasks: int = 1_000_000, duration_s: float = 0.0) -> Row:
    """Every node's driver submits its share of empty tasks to its own node."""
    began = time.perf_counter()
    cluster = _ready(seed, nodes, cpus)
    begun_at = cluster.world.now
    for node in list(cluster.nodes.values()):
        cluster.submit(cluster.add_driver(node), [Task(duration_s) for _ in range(tasks // nodes)])
    cluster.run(begun_at + 600)
    return _row(cluster, begun_at, began, scenario="linear", cpus=cpus)


def everywhere(seed: int, nodes: int, cpus: int, tasks: int, duration_s: float) -> Row:
    """One driver submits everything: the global scheduler deals it out."""
    began = time.perf_counter()
    cluster = _ready(seed, nodes, cpus)
    begun_at = cluster.world.now
    driver = cluster.add_driver(next(iter(cluster.nodes.values())))
    cluster.submit(driver, [Task(duration_s) for _ in range(tasks)])
    cluster.run(begun_at + 600)
    return _row(cluster, begun_at, began, scenario="everywhere", cpus=cpus)


def growth(seed: int, most: int = 10_000) -> Iterator[Row]:
    """Both kinds of work on clusters of 4-CPU nodes, tasks of 10 ms, or of 100 ms where there are so many nodes that they are too many to play."""
    for nodes in (1, 10, 100, 1_000, 10_000):
        if nodes <= most:
            tasks, task_s = (200, 0.010) if nodes < 10_000 else (40, 0.100)
            row = linear(seed, nodes, 4, nodes * tasks, task_s)
            yield {**row, "scenario": "growth, local work", "task_s": task_s}
    for nodes in (1, 10, 100, 1_000):
        if nodes <= most:
            row = everywhere(seed, nodes, 4, min(40_000, nodes * 200), 0.010)
            yield {**row, "scenario": "growth, one driver", "task_s": 0.010}


def latency(seed: int, nodes: int = 16, rounds: int = 30, chunk_s: float = 0.004) -> Iterator[Row]:
    """Allreduce by tasks: in every round each node adds a chunk that its neighbour has sent; a round begins when the one before has ended."""
    for added_ms in (0, 1, 5, 10):
        began = time.perf_counter()
        cluster = _ready(seed, nodes, 4, replace(Costs(), added_scheduling_s=added_ms / 1e3))
        drivers = [cluster.add_driver(node) for node in list(cluster.nodes.values())]
        begun_at = cluster.world.now
        times = []
        for _ in range(rounds):
            start = cluster.world.now
            work = [Task(chunk_s) for _ in drivers]
            for driver, task in zip(drivers, work, strict=True):
                cluster.submit(driver, [task])
            cluster.run(start + 60)
            end = max(task.ended_at for task in work)
            cluster.world.run(end)
            times.append(end - start)
        row = _row(cluster, begun_at, began, scenario="latency", added_ms=added_ms)
        row["round_ms_first"] = round(times[0] * 1e3, 2)
        row["round_ms_median"] = round(sorted(times)[len(times) // 2] * 1e3, 2)
        yield row


def evolution(seed: int, tasks: int = 100_000, times: list[float] | None = None) -> Iterator[Row]:
    """One generation: a root's aggregators (one a node) each submit their share of uneven episodes and wait for them.

    Args:
        tasks: episodes, all nodes together.
        times: seconds that episodes were measured to take, from which each draws its own; by default they are spread evenly over 0.05 to 0.15.
    """
    for cores in (64, 256, 1_024, 4_096, 8_192):
        began = time.perf_counter()
        nodes = max(1, cores // 32)
        cluster = _ready(seed, nodes, 32)
        dice, begun_at, work_s = cluster.world.dice, cluster.world.now, 0.0
        for node in list(cluster.nodes.values()):
            share = []
            for _ in range(max(1, tasks // nodes)):
                duration_s = dice.choice(times) if times else 0.05 + 0.1 * dice.random()
                work_s += duration_s
                share.append(Task(duration_s))
            cluster.submit(cluster.add_driver(node), share)
        cluster.run(begun_at + 60 + 10 * work_s / cores)
        row = _row(cluster, begun_at, began, scenario="evolution", cores=cores, work_s=round(work_s, 1))
        row["ideal_share"] = round(work_s / cores / row["virtual_s"], 3)
        yield row


SCENARIOS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "everywhere": everywhere,
    "growth": growth,
    "latency": latency,
    "evolution": evolution,
}
