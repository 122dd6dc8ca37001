"""What the death of the GCS server costs: latencies of what needs it, without deaths and across `kill -9`.

    python benchmarks/gcs_death.py [--deaths 10] [--storage sqlite]
    python benchmarks/gcs_death.py --sentinel [--deaths 5]       the tables are in Redis; what dies is the primary of its replica set

One JSON line: for each kind of request the median and the 99th percentile in steady state, and the median and the worst of the requests that a
death hit (in ms); and the same for tasks, which do not need the GCS. Paper figure 10a is the same experiment with a chain of replicas. With
`--sentinel` the servers are on this machine, and a sentinel takes a primary for dead that is silent for 300 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shoal
from shoal.runtime import core

TIMEOUT_S = 60
SENTINEL_LOOKS_S = 10.5


@shoal.remote
def nothing() -> None:
    """A task."""


@shoal.remote(num_cpus=0)
class Actor:
    """An actor."""

    def call(self) -> None:
        """A call."""


class Client(threading.Thread):
    """Does one thing again and again, and remembers when each began and how long it took."""

    def __init__(self, once: Callable[[], Any], pause_s: float) -> None:
        super().__init__(daemon=True)
        self._once = once
        self._pause_s = pause_s
        self._stopping = threading.Event()
        #: (begun, seconds)
        self.times: list[tuple[float, float]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                begun = time.perf_counter()
                self._once()
                self.times.append((begun, time.perf_counter() - begun))
                time.sleep(self._pause_s)
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """End it; raises what went wrong."""
        self._stopping.set()
        self.join(TIMEOUT_S)
        if self.error is not None:
            raise self.error


def line() -> dict[str, int]:
    """How the node's line to the GCS is."""
    found: dict[str, int] = core.current().call("node.stats")["gcs"]
    return found


def kill_gcs() -> float:
    """Kill the GCS server; when that was."""
    pid = line()["pid"]
    now = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    return now


class Failover:
    """A replica set whose primary is killed; the dead one comes back as a replica before the next death."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from tests.gcs.redis_servers import ReplicaSet, wait_until

        self._wait_until = wait_until
        self.replicas = ReplicaSet(folder)

    def kill(self) -> float:
        """Kill the primary; when that was."""
        replicas = self.replicas
        dead = replicas.ports.index(replicas.primary())
        now = time.perf_counter()
        replicas.servers[dead].kill()
        replicas.servers[dead].wait()
        self._wait_until(lambda: replicas.primary() != replicas.ports[dead])
        time.sleep(1.0)
        replicas.servers[dead] = replicas.start_server(dead, replicas.primary())
        self._wait_until(lambda: "master_link_status:up" in replicas.ask(replicas.ports[dead], "info", "replication"))
        time.sleep(SENTINEL_LOOKS_S)  # a sentinel knows of a replica when it has asked the primary, every 10 s
        return now


def new_actor() -> None:
    """An actor's creation and its first call."""
    shoal.get(Actor.remote().call.remote(), timeout=TIMEOUT_S)


def main() -> None:
    """Run it and print the line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deaths", type=int, default=10)
    parser.add_argument("--steady", type=float, default=3.0, help="seconds without a death")
    parser.add_argument("--storage", default="sqlite")
    parser.add_argument("--sentinel", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        failover = Failover(Path(folder)) if arguments.sentinel else None
        try:
            run(arguments, failover)
        finally:
            if failover is not None:
                failover.replicas.end()


def run(arguments: argparse.Namespace, failover: Failover | None) -> None:
    """Measure, and print the line."""
    storage = arguments.storage if failover is None else failover.replicas.url
    shoal.init(num_cpus=2, log_to_driver=False, _system={"gcs_storage": storage})
    runtime = core.current()
    row = {"namespace": "benchmark", "key": b"key"}
    kinds: dict[str, Callable[[], Any]] = {
        "kv_put": lambda: runtime.call("gcs.kv_put", {**row, "value": b"value"}),
        "kv_get": lambda: runtime.call("gcs.kv_get", row),
        "actor_first_call": new_actor,
        "task": lambda: shoal.get(nothing.remote(), timeout=TIMEOUT_S),
    }
    for once in kinds.values():
        for _ in range(5):
            once()
    clients = {kind: Client(once, 0.02) for kind, once in kinds.items()}
    begun = time.perf_counter()
    for client in clients.values():
        client.start()
    time.sleep(arguments.steady)
    steady_until = time.perf_counter()
    deaths = []
    for _ in range(arguments.deaths):
        deaths.append(kill_gcs() if failover is None else failover.kill())
        time.sleep(1.0)
    for client in clients.values():
        client.finish()
    restarts, expected = line()["restarts"], arguments.deaths if failover is None else 0
    assert restarts == expected, f"{expected} deaths of the GCS server, {restarts} restarts"
    name = arguments.storage if failover is None else "redis+sentinel"
    result: dict[str, Any] = {"benchmark": "gcs_death", "storage": name, "deaths": arguments.deaths}
    for kind, client in clients.items():
        result[kind] = latencies(client.times, begun, steady_until, deaths)
    result["load"] = round(os.getloadavg()[0], 1)
    shoal.shutdown()
    print(json.dumps(result))


def latencies(
    times: list[tuple[float, float]], begun: float, steady_until: float, deaths: list[float]
) -> dict[str, float]:
    """Steady-state and worst latencies in ms."""
    steady = sorted(seconds for at, seconds in times if begun <= at and at + seconds <= steady_until)
    # Of each death, the slowest request that was under way or made while the server was away.
    hit = [max((s for at, s in times if at + s > death and at < death + 1.0), default=0.0) for death in deaths]
    return {
        "steady_ms": round(statistics.median(steady) * 1000, 2),
        "steady_p99_ms": round(steady[int(len(steady) * 0.99)] * 1000, 2),
        "death_median_ms": round(statistics.median(hit) * 1000, 1),
        "death_worst_ms": round(max(hit) * 1000, 1),
    }


if __name__ == "__main__":
    main()
