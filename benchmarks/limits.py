"""How much the engine takes at once, and whether it forgets: `python benchmarks/limits.py [--tasks 10000000] [--only NAME ...]`.

Prints one JSON line per limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import psutil

import shoal


@shoal.remote
def empty(*_: Any) -> None:
    """Nothing."""


@shoal.remote
def count_arguments(*arguments: Any) -> int:
    """How many there were."""
    return len(arguments)


@shoal.remote(num_returns=3000)
def many_returns() -> range:
    """0 to 2,999, each a result of its own."""
    return range(3000)


@shoal.remote
def descend(depth: int) -> int:
    """A task that waits for a task that waits for a task."""
    return 0 if depth == 0 else 1 + int(shoal.get(descend.remote(depth - 1)))


def memory_mb() -> dict[str, float]:
    """Memory of its own of the driver, and of all processes below it."""
    driver = psutil.Process()
    below = 0
    for process in driver.children(recursive=True):
        try:
            below += process.memory_full_info().uss
        except psutil.Error:
            continue
    return {"driver_mb": round(driver.memory_full_info().uss / 1e6, 1), "engine_mb": round(below / 1e6, 1)}


def queued(options: argparse.Namespace) -> dict[str, Any]:
    """A million tasks submitted before the first is fetched."""
    count = options.queued
    start = time.perf_counter()
    refs = [empty.remote() for _ in range(count)]
    submitted_s = time.perf_counter() - start
    peak = memory_mb()
    shoal.get(refs)
    return {"tasks": count, "submitted_s": submitted_s, "done_s": time.perf_counter() - start, **peak}


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """10,000 refs as arguments of one task."""
    refs = [shoal.put(number) for number in range(10_000)]
    start = time.perf_counter()
    counted = shoal.get(count_arguments.remote(*refs))
    return {"arguments": counted, "seconds": time.perf_counter() - start}


def returns(options: argparse.Namespace) -> dict[str, Any]:
    """3,000 results of one task."""
    start = time.perf_counter()
    values = shoal.get(many_returns.remote())
    return {"returns": len(values), "right": values == list(range(3000)), "seconds": time.perf_counter() - start}


def nested(options: argparse.Namespace) -> dict[str, Any]:
    """1,000 tasks, each waiting for the next."""
    start = time.perf_counter()
    depth = shoal.get(descend.remote(1000))
    return {"depth": depth, "seconds": time.perf_counter() - start}


def actors(options: argparse.Namespace) -> dict[str, Any]:
    """1,000 actors alive at once."""

    @shoal.remote(num_cpus=0)
    class Resident:
        def pid(self) -> int:
            return os.getpid()

    start = time.perf_counter()
    residents = [Resident.remote() for _ in range(1000)]
    pids = shoal.get([resident.pid.remote() for resident in residents])
    seconds = time.perf_counter() - start
    result = {"actors": len(set(pids)), "seconds": seconds, **memory_mb()}
    del residents
    return result


def flat(options: argparse.Namespace) -> dict[str, Any]:
    """Memory over many tasks: the first and the last tenth are compared."""
    samples: list[dict[str, float]] = []
    done, start = 0, time.perf_counter()
    while done < options.tasks:
        for _ in range(max(1, options.tasks // 10 // 1000)):
            shoal.get([empty.remote() for _ in range(1000)])
            done += 1000
        gc.collect()
        samples.append(memory_mb())
    seconds = time.perf_counter() - start
    return {
        "tasks": done,
        "tasks_per_s": done / seconds,
        "driver_mb": [sample["driver_mb"] for sample in samples],
        "engine_mb": [sample["engine_mb"] for sample in samples],
    }


LIMITS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "queued": queued,
    "arguments": arguments,
    "returns": returns,
    "nested": nested,
    "actors": actors,
    "flat": flat,
}


def main() -> None:
    """Try each limit in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queued", type=int, default=1_000_000, help="tasks queued at once")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="tasks of the memory run")
    parser.add_argument("--only", nargs="+", choices=sorted(LIMITS), default=list(LIMITS))
    options = parser.parse_args()
    shoal.init(num_cpus=2, log_to_driver=False)
    for name in options.only:
        gc.collect()
        print(json.dumps({"limit": name, **LIMITS[name](options)}), flush=True)
    shoal.shutdown()


if __name__ == "__main__":
    main()
