"""`shoal demo`: what the system does, in ten seconds and one terminal, with nothing but the package installed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import shoal

SMALL_TASKS = 20_000
SIMULATIONS = 120
LARGE_BYTES = 100_000_000


@shoal.remote
def _square(x: int) -> int:
    return x * x


@shoal.remote
def _hits(seed: int, points: int) -> tuple[int, int]:
    """Random points that fall into the quarter circle, and how many were thrown."""
    dice = random.Random(seed)
    return sum(dice.random() ** 2 + dice.random() ** 2 < 1 for _ in range(points)), points


@shoal.remote
def _sum_of_squares(first: int, last: int) -> int:
    """A task that submits tasks."""
    if last - first <= 8:
        return sum(shoal.get([_square.remote(x) for x in range(first, last)]))
    middle = (first + last) // 2
    return int(sum(shoal.get([_sum_of_squares.remote(first, middle), _sum_of_squares.remote(middle, last)])))


@shoal.remote
def _length(value: Any) -> tuple[int, int]:
    return len(value), os.getpid()


@shoal.remote
def _divide(x: int, y: int) -> float:
    return x / y


@shoal.remote(num_cpus=0)
class _Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


def _tasks(console: Console) -> None:
    start = time.perf_counter()
    total = sum(shoal.get([_square.remote(x) for x in range(SMALL_TASKS)]))
    seconds = time.perf_counter() - start
    console.print(
        f"   {SMALL_TASKS:,} tasks in {seconds:.2f} s: {SMALL_TASKS / seconds:,.0f} a second (sum of squares {total:,})"
    )
    count, start = 300, time.perf_counter()
    for x in range(count):
        shoal.get(_square.remote(x))
    console.print(f"   one at a time: {(time.perf_counter() - start) / count * 1e6:.0f} us there and back")


def _uneven(console: Console) -> None:
    dice = random.Random(7)
    running = [_hits.remote(seed, dice.choice([2_000, 20_000, 60_000])) for seed in range(SIMULATIONS)]
    hits = points = 0
    columns = (
        TextColumn("   pi = {task.fields[pi]}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=SIMULATIONS, pi="?")
        while running:
            done, running = shoal.wait(running)
            for more_hits, more_points in shoal.get(done):
                hits, points = hits + more_hits, points + more_points
            progress.update(bar, advance=len(done), pi=f"{4 * hits / points:.4f}")


def _nested(console: Console) -> None:
    start = time.perf_counter()
    total = shoal.get(_sum_of_squares.remote(0, 1024))
    console.print(f"   a tree of 1,279 tasks, nine deep: {total:,} in {time.perf_counter() - start:.2f} s")


def _actors(console: Console) -> None:
    start = time.perf_counter()
    counter = cast(Any, _Counter).remote()
    shoal.get(counter.add.remote(0))
    born = time.perf_counter() - start
    start, calls = time.perf_counter(), 10_000
    total = shoal.get([counter.add.remote(1) for _ in range(calls)])[-1]
    seconds = time.perf_counter() - start
    console.print(
        f"   an actor was there in {born * 1000:.0f} ms; {calls:,} calls, {calls / seconds:,.0f} a second; it counted {total:,}"
    )


def _objects(console: Console) -> None:
    value = bytearray(LARGE_BYTES)
    start = time.perf_counter()
    ref = shoal.put(value)
    put_s = time.perf_counter() - start
    readers = shoal.get([_length.remote(ref) for _ in range(4)])
    pids = sorted({pid for _, pid in readers})
    console.print(
        f"   100 MB put in {put_s * 1000:.0f} ms ({LARGE_BYTES / put_s / 1e9:.1f} GB/s), read by processes {', '.join(map(str, pids))}"
    )


def _errors(console: Console) -> None:
    try:
        shoal.get(_divide.remote(1, 0))
    except ZeroDivisionError as error:
        console.print(f"   except ZeroDivisionError caught a {type(error).__name__} raised in another process:")
        console.print("   " + str(error).strip().splitlines()[-1], style="dim", highlight=False)


STEPS: list[tuple[str, Callable[[Console], None]]] = [
    ("Tasks: f.remote(x)", _tasks),
    ("Uneven work, results as they come: shoal.wait", _uneven),
    ("Tasks that submit tasks", _nested),
    ("Actors: processes with a state", _actors),
    ("Objects in shared memory: shoal.put", _objects),
    ("Errors arrive as what they are", _errors),
]


def run_demo(num_cpus: int | None) -> None:
    """Run all steps in a session of their own."""
    console = Console(highlight=False)
    start = time.perf_counter()
    shoal.init(num_cpus=num_cpus)
    try:
        shoal.get(_square.remote(1))
        cpus = shoal.cluster_resources().get("CPU", 0)
        console.print(
            f"[bold]Shoal[/bold] {shoal.__version__} with {cpus:g} CPUs, first result after {time.perf_counter() - start:.2f} s"
        )
        for number, (title, step) in enumerate(STEPS, 1):
            console.print(f"\n[bold]{number}. {title}[/bold]")
            step(console)
    finally:
        start = time.perf_counter()
        shoal.shutdown()
    console.print(
        f"\nEverything was gone again {(time.perf_counter() - start) * 1000:.0f} ms after shutdown. Next: examples/ and `shoal status`."
    )
