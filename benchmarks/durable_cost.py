"""What lineage, the trace, authentication and SQLite cost one node: the engine's main figures with and without them, in turns.

    python benchmarks/durable_cost.py [--rounds 9] [--round-s 0.3] [--only KEY ...] [--keep-trace]

Two sessions live at the same time, each in a process of its own, and each figure is measured in one and then the other (the order swaps every
round), so that whatever else the machine does hits both. The line has, for each figure, the median of the rounds' ratios, *with* over *without* in
operations a second: 1.00 costs nothing, the budget is 0.95. On a busy machine that says little, so there is `cpu_ratio` too: the same for
operations a second of CPU time of all processes of a session, over all rounds.

    with      the head of a cluster: it listens on TCP and asks for the token, speaks to the GCS of other nodes' leases, tells its load; tables
              in SQLite; owners keep the lineage of stored results; workers note a trace event for each task
    without   `init(_system={"gcs_storage": "memory"})`: no listener, no cluster, tables in memory; nothing is kept of lineage and trace

Lineage and trace have no switch in the product. Here they are taken out of the *without* session by replacing `LineageTable.keep` in the driver
and `Executor.note_event` in its workers; what an escaping ref carries along stays in both, and so does the lineage of what tasks submit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measuring import TOKEN_VARIABLE, family
from workloads import CPUS, Workloads

KEYS = (
    "tasks_async",
    "task_sync",
    "actor_async",
    "actor_sync",
    "nested",
    "chain_200",
    "argument_10kb",
    "return_1mb",
    "put_small",
)
PATCHES = 64  #: tasks that take the trace out of their workers, so many that all of these are met
ANSWER_S = 60.0
STORE_BYTES = 1 << 30


def take_out(keep_trace: bool) -> None:
    """No lineage in this driver, and, but for `keep_trace`, no trace in its workers."""
    import shoal
    from shoal.runtime.lineage import LineageTable

    LineageTable.keep = lambda *_: None  # type: ignore[method-assign, assignment]
    if keep_trace:
        return

    @shoal.remote(num_cpus=0)
    def patch() -> int:
        from shoal.runtime.executor import Executor

        Executor.note_event = lambda *_: None  # type: ignore[method-assign, assignment]
        time.sleep(0.005)
        return os.getpid()

    shoal.get([patch.remote() for _ in range(PATCHES)], timeout=ANSWER_S)


def cpu_s(token: str) -> float:
    """CPU time of all processes of a session that live, in seconds; the kernel counts it in nanoseconds for each thread."""
    total_ns = 0
    for process in family(token, os.getpid()):
        for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total_ns += int(thread.read_text().split()[0])
    return total_ns / 1e9


def measure_once(work: Callable[[], float], seconds: float, token: str) -> tuple[float, float, float]:
    """Operations, seconds and seconds of CPU time of about `seconds` of work."""
    work()
    before_s, begun = cpu_s(token), time.perf_counter()
    done = 0.0
    while time.perf_counter() - begun < seconds:
        done += work()
    spent_s = time.perf_counter() - begun
    return done, spent_s, cpu_s(token) - before_s


def serve(pipe: Connection, durable: bool, keep_trace: bool) -> None:
    """One session: measures what it is told to, until it is told nothing."""
    token = os.environ[TOKEN_VARIABLE] = os.urandom(8).hex()
    import shoal
    from shoal.testing import Cluster

    cluster = None
    if durable:
        cluster = Cluster(num_cpus=CPUS, object_store_memory=STORE_BYTES)
        cluster.connect(log_to_driver=False)
    else:
        shoal.init(
            num_cpus=CPUS,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            include_dashboard=False,
            _system={"gcs_storage": "memory"},
        )
        take_out(keep_trace)
    try:
        loads, works = Workloads(shoal), {}
        pipe.send("ready")
        while (asked := pipe.recv()) is not None:
            key, seconds = asked
            if key not in works:
                works = {key: getattr(loads, key)()}  # the actors of the one before end
            pipe.send(measure_once(works[key], seconds, token))
    finally:
        shoal.shutdown()
        if cluster is not None:
            cluster.shutdown()


def answer(pipe: Connection) -> Any:
    """What a session says.

    Raises:
        TimeoutError: it says nothing.
    """
    if not pipe.poll(ANSWER_S):
        raise TimeoutError(f"a session said nothing for {ANSWER_S:.0f} s")
    return pipe.recv()


def measure(keys: list[str], rounds: int, round_s: float, keep_trace: bool = False) -> dict[str, Any]:
    """All figures."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[bool, Any] = {}
    processes = []
    try:
        for durable in (True, False):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, durable, keep_trace))
            process.start()
            processes.append(process)
            pipes[durable] = ours
            assert answer(ours) == "ready"
        figures = {}
        for key in keys:
            rows: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
            for number in range(rounds):
                for durable in (True, False) if number % 2 else (False, True):
                    pipes[durable].send((key, round_s))
                    rows[durable].append(answer(pipes[durable]))
            values = {durable: [done / spent for done, spent, _ in rows[durable]] for durable in rows}
            a_cpu_s = {
                durable: sum(row[0] for row in each) / sum(row[2] for row in each) for durable, each in rows.items()
            }
            ratios = [a / b for a, b in zip(values[True], values[False], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            figures[key] = {
                "with": round(statistics.median(values[True]), 1),
                "without": round(statistics.median(values[False]), 1),
                "ratio": round(statistics.median(ratios), 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "cpu_ratio": round(a_cpu_s[True] / a_cpu_s[False], 3),
            }
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join(ANSWER_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    medians = {
        f"median_{name}": round(statistics.median(figure[name] for figure in figures.values()), 3)
        for name in ("ratio", "cpu_ratio")
    }
    return {"figures": figures, **medians}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--round-s", type=float, default=0.3)
    parser.add_argument("--only", nargs="+", choices=KEYS, default=list(KEYS))
    parser.add_argument("--keep-trace", action="store_true", help="leave the trace in both")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(options.only, options.rounds, options.round_s, options.keep_trace)
    print(json.dumps({"benchmark": "durable_cost", "load": round(load, 1), "rounds": options.rounds, **found}))


if __name__ == "__main__":
    main()
