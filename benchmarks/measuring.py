"""How a figure is measured: a warm-up, then several repetitions of bounded time, of which the median counts.

A measured process talks to the runner through one file descriptor, a JSON line per figure, so that whatever the measured system prints
disturbs nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

REALTIME_VARIABLE = "SHOAL_BENCH_REALTIME"  # set: measured sections get real-time priority (`realtime`)
TOKEN_VARIABLE = "SHOAL_BENCH_TOKEN"  # every process of a measured system inherits it: so they are found again


@contextlib.contextmanager
def realtime(family_too: bool = False) -> Iterator[None]:
    """Give this process (and those it has started) the CPUs before all others for a section, if `REALTIME_VARIABLE` is set: needs root.

    So programs can be compared on a machine that others use: every program gets the same priority in the section that is measured, and only there,
    because everything else on the machine stands still meanwhile. Sections should be of a second or two.
    """
    if not os.environ.get(REALTIME_VARIABLE):
        yield
        return
    pids = [os.getpid()]
    if family_too:
        pids += [child.pid for child in psutil.Process().children(recursive=True)]
    _schedule(pids, os.SCHED_RR, 1)
    try:
        yield
    finally:
        _schedule(pids, os.SCHED_OTHER, 0)


def _schedule(pids: list[int], policy: int, priority: int) -> None:
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


@dataclass(slots=True)
class Pace:
    """How much time a figure gets."""

    repetitions: int = 5
    repetition_s: float = 0.6
    figure_s: float = 12.0  #: no further repetition starts after this


QUICK = Pace(repetitions=3, repetition_s=0.25, figure_s=3.0)


def rate(work: Callable[[], float], pace: Pace) -> dict[str, float]:
    """`work()` does one batch and returns how many operations (or gigabytes) that was; the result is in those per second.

    Batches are repeated until a repetition has lasted `pace.repetition_s`.
    """
    begin = time.perf_counter()
    work()
    while time.perf_counter() - begin < min(0.3, pace.repetition_s):
        work()
    values: list[float] = []
    while len(values) < pace.repetitions and (not values or time.perf_counter() - begin < pace.figure_s):
        done = 0.0
        start = time.perf_counter()
        while True:
            done += work()
            elapsed = time.perf_counter() - start
            if elapsed >= pace.repetition_s:
                break
        values.append(done / elapsed)
    return {
        "value": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
    }


class Reporter:
    """Writes results to the runner's pipe."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "w", buffering=1)

    def send(self, key: str, **fields: Any) -> None:
        """One line: the figure's key and its fields."""
        self._file.write(json.dumps({"key": key, **fields}) + "\n")

    def run(self, keys: Iterable[str], table: dict[str, Callable[[], Callable[[], float]]], pace: Pace) -> None:
        """Measure each figure of `keys` that the system has. A set-up function returns the work to repeat."""
        for key in keys:
            if key not in table:
                continue
            self.send(key, begin=True)
            try:
                work = table[key]()
                result = rate(work, pace)
                del work
            except Exception as error:
                traceback.print_exc()
                self.send(
                    key, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
                )
            else:
                self.send(key, **result)


def family(token: str, root_pid: int) -> list[psutil.Process]:
    """The processes of a measured system: descendants of `root_pid`, and all that inherited the token. Not `root_pid` itself."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root_pid).children(recursive=True):
            found[process.pid] = process
    for process in psutil.process_iter():
        if process.pid in found or process.pid == root_pid:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN_VARIABLE) == token:
                found[process.pid] = process
    return list(found.values())


def memory_of(processes: Iterable[psutil.Process]) -> tuple[float, int]:
    """(megabytes that would be free without these processes, their number)."""
    total = 0
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
            count += 1
    return total / 1e6, count


def idle_figures(report: Reporter, started_s: float, stop: Callable[[], None], settle_s: float) -> None:
    """The figures of a life: start (given), idle memory after `settle_s`, number of processes, stop."""
    report.send("start", value=started_s)
    time.sleep(settle_s)
    megabytes, count = memory_of(family(os.environ.get(TOKEN_VARIABLE, ""), os.getpid()))
    report.send("idle_memory", value=megabytes)
    report.send("idle_processes", value=count)
    start = time.perf_counter()
    stop()
    report.send("stop", value=time.perf_counter() - start)
