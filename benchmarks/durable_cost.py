"""What lineage, the trace, authentication and SQLite cost one node: the engine's main figures with and without them, in turns.

    python benchmarks/durable_cost.py [--pairs 5] [--rounds 7] [--round-s 0.15] [--only KEY ...] [--keep-trace | --control]

Two sessions live at the same time, each in a process of its own, and each figure is measured in one and then the other (the order swaps every
round), so that whatever else the machine does hits both. Two sessions of the same kind differ, too, by some percent for as long as they live, so
there are several such pairs, of which the first session is started first by turns. The line has, for each figure, the median of all rounds'
ratios, *with* over *without* in operations a second (1.00 costs nothing, the budget is 0.95), and the median of each pair. On a busy machine that
says little, so there is `cpu_ratio` too: the same for operations a second of CPU time of all processes of a session, the median of the pairs.
`--control` measures *with* against *with*: what is not 1.00 there is the benchmark's own error.

    with      the head of a cluster: it listens on TCP and asks for the token, speaks to the GCS of other nodes' leases, tells its load; tables
              in SQLite; owners keep the lineage of stored results, and tell that of refs that escape; workers note a trace event for each task
    without   `init(_system={"gcs_storage": "memory"})`: no listener, no cluster, tables in memory; nothing is kept or told of lineage and trace

Lineage and trace have no switch in the product. Here they are taken out of the *without* session by replacing `LineageTable.keep` and what describes
an escaping ref, in the driver and its workers, and `Executor.note_event` in the workers.
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
from types import SimpleNamespace
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
    "nested_ref",
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

    def forget_lineage() -> None:
        from shoal.runtime.core import current
        from shoal.runtime.lineage import LineageTable

        LineageTable.keep = lambda *_: None  # type: ignore[method-assign, assignment]
        current().objects.describe = lambda entry: None
        # told without lineage, but as many in one message
        empty: Any = SimpleNamespace(needs=[], text=b"", cuts=(0, 0), function_id=b"")
        current().objects.pattern_of = lambda entry: empty if entry.value is None and entry.task is not None else None

    @shoal.remote(num_cpus=0)
    def patch() -> int:
        from shoal.runtime.executor import Executor

        forget_lineage()
        if not keep_trace:
            Executor.note_event = lambda *_: None  # type: ignore[method-assign, assignment]
        time.sleep(0.005)
        return os.getpid()

    forget_lineage()

    shoal.get([patch.remote() for _ in range(PATCHES)], timeout=ANSWER_S)


def cpu_ns(token: str) -> dict[str, int]:
    """CPU time of each thread of a session's living processes, this driver included; the kernel counts it in nanoseconds."""
    found = {}
    for pid in (os.getpid(), *[process.pid for process in family(token, os.getpid())]):
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                found[str(thread)] = int(thread.read_text().split()[0])
    return found


def measure_once(work: Callable[[], float], seconds: float, token: str) -> tuple[float, float, float]:
    """Operations, seconds and seconds of CPU time of about `seconds` of work."""
    work()
    before_ns, begun = cpu_ns(token), time.perf_counter()
    done = 0.0
    while time.perf_counter() - begun < seconds:
        done += work()
    spent_s = time.perf_counter() - begun
    spent_ns = sum(now - before_ns.get(thread, 0) for thread, now in cpu_ns(token).items())  # but for what has ended
    return done, spent_s, spent_ns / 1e9


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


Row = tuple[float, float, float]  #: operations, seconds, seconds of CPU time


def pair(keys: list[str], rounds: int, round_s: float, kinds: tuple[bool, bool], first: int, keep_trace: bool) -> Any:
    """Rows of each figure and session of one pair. `kinds` says whether each session is one with everything; number `first` begins."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[int, Any] = {}
    processes = []
    rows: dict[str, tuple[list[Row], list[Row]]] = {key: ([], []) for key in keys}
    try:
        for which in (first, 1 - first):
            pipes[which], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, kinds[which], keep_trace))
            process.start()
            processes.append(process)
            assert answer(pipes[which]) == "ready"
        for key in keys:
            for number in range(rounds):
                for which in (0, 1) if (number + first) % 2 else (1, 0):
                    pipes[which].send((key, round_s))
                    rows[key][which].append(answer(pipes[which]))
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join(ANSWER_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return rows


def measure(
    keys: list[str], pairs: int, rounds: int, round_s: float, keep_trace: bool = False, control: bool = False
) -> dict[str, Any]:
    """All figures."""
    made = [pair(keys, rounds, round_s, (True, control), number % 2, keep_trace) for number in range(pairs)]
    figures = {}
    for key in keys:
        ratios: list[list[float]] = []
        cpu_ratios = []
        values: tuple[list[float], list[float]] = ([], [])
        for rows in made:
            rates = [[done / spent for done, spent, _ in each] for each in rows[key]]
            ratios.append([a / b for a, b in zip(*rates, strict=True)])
            for which in (0, 1):
                values[which].extend(rates[which])
            a_cpu_s = [sum(row[0] for row in each) / sum(row[2] for row in each) for each in rows[key]]
            cpu_ratios.append(a_cpu_s[0] / a_cpu_s[1])
        low, middle, high = statistics.quantiles([ratio for each in ratios for ratio in each], n=4)
        figures[key] = {
            "with": round(statistics.median(values[0]), 1),
            "without": round(statistics.median(values[1]), 1),
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "pairs": [round(statistics.median(each), 3) for each in ratios],
            "cpu_ratio": round(statistics.median(cpu_ratios), 3),
        }
    medians = {
        f"median_{name}": round(statistics.median(figure[name] for figure in figures.values()), 3)
        for name in ("ratio", "cpu_ratio")
    }
    return {"figures": figures, **medians}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-s", type=float, default=0.15)
    parser.add_argument("--only", nargs="+", choices=KEYS, default=list(KEYS))
    parser.add_argument("--keep-trace", action="store_true", help="leave the trace in both")
    parser.add_argument("--control", action="store_true", help="both with everything")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(options.only, options.pairs, options.rounds, options.round_s, options.keep_trace, options.control)
    settings = {name: getattr(options, name) for name in ("pairs", "rounds", "round_s", "keep_trace", "control")}
    print(json.dumps({"benchmark": "durable_cost", "load": round(load, 1), **settings, **found}))


if __name__ == "__main__":
    main()
