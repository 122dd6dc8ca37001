"""Throughput while nodes are killed and others join: chains of 100 ms tasks over several nodes (paper figure 11a).

    python benchmarks/node_churn.py [--chains 8] [--links 250] [--size 200000] [--picture docs/pictures/node_churn.png]

A head with the driver and four nodes of two CPUs. Each task takes the result of the one before it in its chain and notes when it ran. Two nodes are
killed, one after the other, and two join later. A task that runs for the second time was re-executed: its result lay on a dead node and somebody
needed it. One JSON line with tasks a second in each phase, and a table by seconds; every chain's value is checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import threading
import time
from collections import Counter
from typing import Any

import shoal
from shoal.testing import Cluster

TASK_S = 0.1
NODES = 4
#: seconds from the beginning, and what happens
EVENTS = ((8.0, "killed"), (14.0, "killed"), (21.0, "joins"), (27.0, "joins"))
TIMEOUT_S = 120
BUCKET_S = 1.0


@shoal.remote(resources={"chain": 1}, num_cpus=1)
def link(notes: str, chain: int, index: int, size: int, before: Any) -> tuple[int, bytes]:
    """One task of a chain: it counts on from the one before."""
    time.sleep(TASK_S)
    with open(notes, "a") as file:
        file.write(f"{time.time()} {chain} {index}\n")
    return (0 if before is None else before[0]) + 1, b"x" * size


def happenings(cluster: Cluster, began: float, stopped: threading.Event) -> None:
    """Kill nodes and add others at their times."""
    for at_s, what in EVENTS:
        if stopped.wait(max(began + at_s - time.time(), 0.0)):
            return
        if what == "killed":
            victim = next(node for node in cluster.nodes if not node.is_head)
            cluster.remove_node(victim, kill=True)
        else:
            cluster.add_node(num_cpus=2, resources={"chain": 2})


def run(chains: int, links: int, size: int) -> tuple[list[tuple[float, bool]], float]:
    """(when it ran, whether it had run before) of all tasks, and how long all took."""
    notes = os.path.join(tempfile.mkdtemp(), "notes")
    stopped = threading.Event()
    with Cluster(num_cpus=1) as cluster:
        for _ in range(NODES):
            cluster.add_node(num_cpus=2, resources={"chain": 2})
        cluster.connect(log_to_driver=False)
        shoal.get([link.remote(notes, -1, 0, 0, None) for _ in range(2 * NODES)], timeout=TIMEOUT_S)
        began = time.time()
        events = threading.Thread(target=happenings, args=(cluster, began, stopped))
        events.start()
        last = []
        for chain in range(chains):
            ref = None
            for index in range(links):
                ref = link.remote(notes, chain, index, size, ref)
            last.append(ref)
        try:
            counted = [shoal.get(ref, timeout=TIMEOUT_S)[0] for ref in last]
        finally:
            stopped.set()
            events.join()
        taken_s = time.time() - began
    assert counted == [links] * chains, counted
    ran: Counter[tuple[str, str]] = Counter()
    found = []
    with open(notes) as file:
        for line in file:
            at, chain_no, index_no = line.split()
            if chain_no != "-1":
                found.append((float(at) - began, ran[chain_no, index_no] > 0))
                ran[chain_no, index_no] += 1
    return found, taken_s


def by_second(found: list[tuple[float, bool]], taken_s: float) -> list[tuple[int, int]]:
    """Tasks in each second: new ones, re-executed ones."""
    rows = [[0, 0] for _ in range(int(taken_s / BUCKET_S) + 1)]
    for at_s, again in found:
        rows[min(int(at_s / BUCKET_S), len(rows) - 1)][again] += 1
    return [(new, again) for new, again in rows]


def phases(rows: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Tasks a second between the events."""
    edges = [0.0, *(at_s for at_s, _ in EVENTS), len(rows) * BUCKET_S - 1]
    nodes, result = NODES, []
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        if number:
            nodes += 1 if EVENTS[number - 1][1] == "joins" else -1
        part = rows[int(start) : int(end)]
        if part:
            new, again = (sum(column) / len(part) for column in zip(*part, strict=True))
            result.append({"from_s": start, "nodes": nodes, "new_per_s": round(new, 1), "again_per_s": round(again, 1)})
    return result


def draw(rows: list[tuple[int, int]], path: str) -> None:
    """The picture: bars of a second each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2))
    seconds = [number * BUCKET_S for number in range(len(rows))]
    axes.bar(seconds, [new for new, _ in rows], 0.9, align="edge", label="tasks")
    axes.bar(seconds, [again for _, again in rows], 0.9, [new for new, _ in rows], align="edge", label="re-executed")
    top = 1.1 * max(new + again for new, again in rows)
    for at_s, what in EVENTS:
        axes.axvline(at_s, color="black", linewidth=0.8, linestyle="--")
        axes.text(at_s, top, f"a node {what}", fontsize=8, ha="center", va="bottom")
    axes.set(xlabel="seconds", ylabel="tasks a second", ylim=(0, top))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--links", type=int, default=250)
    parser.add_argument("--size", type=int, default=200_000, help="bytes of each result")
    parser.add_argument("--picture", default="", help="a file to draw to")
    options = parser.parse_args()
    found, taken_s = run(options.chains, options.links, options.size)
    rows = by_second(found, taken_s)
    again = sum(each for _, each in rows)
    figures = {"benchmark": "node_churn", "tasks": options.chains * options.links, "bytes": options.size}
    load = round(os.getloadavg()[0], 1)
    print(
        json.dumps({**figures, "seconds": round(taken_s, 1), "again": again, "load": load, "phases": phases(rows)}),
        flush=True,
    )
    for second, (new, repeated) in enumerate(rows):
        happened = "".join(f"  a node {what}" for at_s, what in EVENTS if int(at_s) == second)
        print(f"{second:3} s {'#' * (new // 2)}{'+' * (repeated // 2)} {new} + {repeated}{happened}")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
