"""Objects between nodes: how fast one large one travels, what a small one costs, and a broadcast over slow links.

    python benchmarks/transfer.py [--rounds 7] [--no-broadcast]

Prints one JSON line. Two real nodes on loopback for the first two; for the broadcast (root only: `ip netns`, `tc`) nine nodes in network namespaces
of their own, whose links to a bridge carry 1 Gbit/s in each direction.

- `large`: GB/s of `get` of one 1 GB array that lies on the other node. The first is into memory that was never touched, the others (median) into
memory that earlier copies left. `iperf3` is that program's figure for one connection on the same loopback, right before and after.
- `small`: ms of `get` of a 150 kB result that lies on the other node, and of a task there and back that returns nothing, beside it.
- `broadcast`: seconds until a task that takes a 64 MB array has begun on one node, and on 8 nodes at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import shoal
from shoal.testing import Cluster, ClusterNode

GB = 1 << 30
MB = 1 << 20
TIMEOUT_S = 120
IPERF_S = 2
NODES = 8
LINK = "1gbit"
SUBNET = "10.213.77"
CLONE_NEWNET = 0x40000000


@shoal.remote(resources={"there": 0.01})
def make(count: int) -> np.ndarray:
    """An array that stays on the other node."""
    return np.ones(count, dtype=np.uint8)


@shoal.remote(resources={"there": 0.01})
def nothing() -> None:
    """A task on the other node."""


@shoal.remote
def begun(array: np.ndarray) -> float:
    """When a task had its argument."""
    assert array[0] == array[-1] == 1
    return time.time()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes bring about."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what this figure waits for did not come")
        time.sleep(0.01)


def store_of(node: ClusterNode) -> dict[str, Any]:
    """What the store of a node has."""
    found: dict[str, Any] = node.call("node.stats")["store"]
    return found


# ---------------------------------------------------------------- two nodes on loopback


def iperf3() -> float | None:
    """GB/s of iperf3 on loopback; None where it is not installed."""
    program = shutil.which("iperf3")
    if program is None:
        return None
    port = "5917"
    server = subprocess.Popen([program, "-s", "-1", "-p", port], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        done = subprocess.run(
            [program, "-c", "127.0.0.1", "-p", port, "-t", str(IPERF_S), "-J"],
            capture_output=True,
            timeout=IPERF_S + 10,
            check=True,
        )
        return round(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9, 2)
    finally:
        server.kill()
        server.wait()


def large(head: ClusterNode, rounds: int) -> dict[str, Any]:
    """GB/s of one object of 1 GB."""
    rates = []
    before = iperf3()
    for _ in range(rounds + 1):
        ref = make.remote(GB)
        shoal.wait([ref], fetch_local=False, timeout=TIMEOUT_S)
        start = time.perf_counter()
        value = shoal.get(ref, timeout=TIMEOUT_S)
        rates.append(round(GB / (time.perf_counter() - start) / 1e9, 2))
        assert value[0] == value[-1] == 1
        del ref, value
        until(lambda: store_of(head)["copies"] == 0)
    after = iperf3()
    found: dict[str, Any] = {"first": rates[0], "median": statistics.median(rates[1:]), "best": max(rates)}
    if before is not None and after is not None:
        found["iperf3"] = [before, after]
        found["share_of_iperf3"] = round(found["median"] / statistics.mean([before, after]), 2)
    return found


def small(count: int = 300) -> dict[str, float]:
    """Milliseconds of small things."""
    pulls, tasks = [], []
    for _ in range(count):
        ref = make.remote(150_000)
        shoal.wait([ref], fetch_local=False, timeout=TIMEOUT_S)
        start = time.perf_counter()
        shoal.get(ref)
        pulls.append(time.perf_counter() - start)
        start = time.perf_counter()
        shoal.get(nothing.remote())
        tasks.append(time.perf_counter() - start)
    return {"pull_150kB_ms": _ms(pulls), "empty_task_there_ms": _ms(tasks)}


def _ms(times: list[float]) -> float:
    return round(statistics.median(times) * 1e3, 3)


def on_loopback(rounds: int) -> dict[str, Any]:
    """The figures of two nodes."""
    with Cluster(num_cpus=1, object_store_memory=3 * GB) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=3 * GB)
        cluster.connect(log_to_driver=False)
        shoal.get(nothing.remote(), timeout=TIMEOUT_S)
        return {"small": small(), "large": large(cluster.head, rounds)}


# ---------------------------------------------------------------- nine nodes with slow links


def run(*command: str) -> None:
    """Run a command of iproute2."""
    subprocess.run(command, check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def network(count: int) -> Iterator[list[str]]:
    """Namespaces on a bridge, each with a link of LINK; their names."""
    tag = f"sh{os.getpid() % 10000}"
    names = [f"{tag}n{number}" for number in range(count)]
    try:
        run("ip", "link", "add", f"{tag}br", "type", "bridge")
        run("ip", "addr", "add", f"{SUBNET}.254/24", "dev", f"{tag}br")
        run("ip", "link", "set", f"{tag}br", "up")
        for number, name in enumerate(names):
            outside = f"{tag}v{number}"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", outside, "master", f"{tag}br", "up")
            run("ip", "-n", name, "addr", "add", f"{SUBNET}.{number + 1}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            limit = ("root", "tbf", "rate", LINK, "burst", "512kb", "latency", "20ms")
            run("tc", "qdisc", "add", "dev", outside, *limit)
            run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *limit)
        yield names
    finally:
        for number, name in enumerate(names):
            subprocess.run(["ip", "link", "del", f"{tag}v{number}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{tag}br"], capture_output=True)


def inside(name: str, call: Callable[[], Any]) -> Any:
    """What `call` returns in a network namespace: in a thread that has gone there; processes that it starts stay there."""
    found: list[Any] = []

    def go() -> None:
        with open(f"/var/run/netns/{name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        found.append(call())

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if not found:
        raise RuntimeError(f"nothing could be started in the network namespace {name}")
    return found[0]


def broadcast() -> dict[str, Any]:
    """Seconds for one node, and for 8 at the same time."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
        return {"skipped": "needs root, ip and tc (iproute2)"}
    with network(NODES + 1) as names:
        options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 512 * MB}
        cluster = inside(names[0], lambda: Cluster(host=f"{SUBNET}.1", **options))
        with cluster:
            for number, name in enumerate(names[1:], start=1):
                more = {"resources": {f"n{number}": 1}, "host": f"{SUBNET}.{number + 1}", "wait": False, **options}
                inside(name, lambda more=more: cluster.add_node(**more))  # type: ignore[misc]
            cluster.wait_for_nodes(timeout=TIMEOUT_S)
            cluster.connect(log_to_driver=False)
            everywhere = [begun.options(resources={f"n{number}": 1}) for number in range(1, NODES + 1)]
            small_array = np.ones(100, dtype=np.uint8)
            shoal.get([task.remote(small_array) for task in everywhere], timeout=TIMEOUT_S)
            ones = [_spread(everywhere[:1]) for _ in range(3)]
            alls = [_spread(everywhere) for _ in range(3)]
            pulled = [node.call("node.stats")["cluster"] for node in cluster.nodes]
    one, everybody = statistics.median(ones), statistics.median(alls)
    return {
        "one_s": round(one, 2),
        "eight_s": round(everybody, 2),
        "ratio": round(everybody / one, 2),
        "all_s": [round(each, 2) for each in alls],
        "chunks_sent_by_node": [node["served"] for node in pulled],
    }


def _spread(tasks: list[Any]) -> float:
    """Seconds until all tasks have an array of 64 MB that lies on the head."""
    put = shoal.put(np.ones(64 * MB, dtype=np.uint8))
    start = time.time()
    ends = shoal.get([task.remote(put) for task in tasks], timeout=TIMEOUT_S)
    return float(max(ends) - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-broadcast", action="store_true")
    parser.add_argument("--only-broadcast", action="store_true")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"load": os.getloadavg()[0]}
    if not chosen.only_broadcast:
        result.update(on_loopback(chosen.rounds))
    if not chosen.no_broadcast:
        result["broadcast"] = broadcast()
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
