"""What trace and lineage cost a task, and whether memory stays flat over millions of sequential tasks (paper figure 10b).

    python benchmarks/lineage_cost.py [--tasks 5000000] [--chain]

Tasks run one after the other: each result is read before the next task is submitted, or (`--chain`) each takes the ref of the one before, and every
thousandth is read. One JSON line: microseconds a task of CPU time in the driver, the worker, the node daemon and the GCS server; of these what
noting a trace event costs the worker (timed alone); and of each process the memory (PSS) at the start, at the end, and its slope over the second
half, in bytes a task and in MB per 50 million tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from types import SimpleNamespace
from typing import Any

import psutil

import shoal
from shoal.runtime.core import current
from shoal.runtime.executor import Executor

SAMPLES = 40


@shoal.remote
def step(_before: Any = None) -> int:
    """A task."""
    return os.getpid()


def processes() -> dict[str, psutil.Process]:
    """The session's processes by role."""
    stats = current().call("node.stats", {})
    worker = shoal.get(step.remote())
    daemon = psutil.Process(psutil.Process(worker).ppid())
    return {
        "driver": psutil.Process(),
        "worker": psutil.Process(worker),
        "daemon": daemon,
        "gcs": psutil.Process(stats["gcs"]["pid"]),
    }


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def noting_us() -> float:
    """How long `Executor.note_event` takes, the emptying of its list included."""
    wire = SimpleNamespace(name="step")
    job: Any = SimpleNamespace(task_id=b"t" * 16, template=SimpleNamespace(wire=wire), attempt=0)
    fake: Any = SimpleNamespace(_events=[], _clock_offset=1.0, _events_at=0.0)
    note, rounds = Executor.note_event, 200
    begun = time.perf_counter()
    for _ in range(rounds):
        fake._events = []
        for _ in range(1000):
            note(fake, job, 1.0, 2.0, b"value")
    return (time.perf_counter() - begun) / rounds / 1000 * 1e6


def slope(points: list[tuple[int, int]]) -> float:
    """Bytes a task, by least squares over the second half."""
    half = points[len(points) // 2 :]
    mean_x = sum(x for x, _ in half) / len(half)
    mean_y = sum(y for _, y in half) / len(half)
    spread = sum((x - mean_x) ** 2 for x, _ in half)
    return sum((x - mean_x) * (y - mean_y) for x, y in half) / spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5_000_000)
    parser.add_argument("--chain", action="store_true")
    options = parser.parse_args()
    shoal.init(num_cpus=1, log_to_driver=False)
    for _ in range(1000):
        shoal.get(step.remote())
    watched = processes()
    memory: dict[str, list[tuple[int, int]]] = {role: [] for role in watched}
    before = {role: cpu_s(process) for role, process in watched.items()}
    begun = time.perf_counter()
    done, part = 0, max(1, options.tasks // SAMPLES)
    ref = step.remote()
    while done < options.tasks:
        for role, process in watched.items():
            memory[role].append((done, process.memory_full_info().pss))
        if options.chain:
            for number in range(part):
                ref = step.remote(ref)
                if number % 1000 == 0:
                    shoal.get(ref)
            shoal.get(ref)
        else:
            for _ in range(part):
                shoal.get(step.remote())
        done += part
    elapsed_s = time.perf_counter() - begun
    result: dict[str, Any] = {"tasks": done, "chain": options.chain, "us_a_task": round(elapsed_s / done * 1e6, 2)}
    result["cpu_us_a_task"] = {
        role: round((cpu_s(process) - before[role]) / done * 1e6, 3) for role, process in watched.items()
    }
    result["noting_a_trace_event_us"] = round(noting_us(), 3)
    for role, process in watched.items():
        memory[role].append((done, process.memory_full_info().pss))
        bytes_a_task = slope(memory[role])
        result[role] = {
            "start_mb": round(memory[role][0][1] / 1e6, 1),
            "end_mb": round(memory[role][-1][1] / 1e6, 1),
            "slope_bytes_a_task": round(bytes_a_task, 4),
            "mb_per_50_million": round(bytes_a_task * 50, 1),
        }
    shoal.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
