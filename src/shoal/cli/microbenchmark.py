"""`shoal microbenchmark`: the rates of this machine, each measured for a moment. The comparison with others is in benchmarks/."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, cast

from rich.console import Console
from rich.table import Table

import shoal

Work = Callable[[], float]


@shoal.remote
def _empty(*_: Any) -> None:
    return None


@shoal.remote(num_cpus=0)
class _Plain:
    def ping(self) -> None:
        return None


@shoal.remote(num_cpus=0)
class _Async:
    async def ping(self) -> None:
        return None


def _repeated(count: int, call: Callable[[], Any]) -> Work:
    def work() -> float:
        for _ in range(count):
            call()
        return count

    return work


def _batch(count: int, submit: Callable[[], Any]) -> Work:
    def work() -> float:
        shoal.get([submit() for _ in range(count)])
        return count

    return work


def _wait_loop(count: int) -> Work:
    def work() -> float:
        rest = [_empty.remote() for _ in range(count)]
        while rest:
            _, rest = shoal.wait(rest)
        return count

    return work


def _array(content: bytearray) -> tuple[Any, str]:
    """What is read without a copy, and how to call it: an array, where numpy is installed."""
    try:
        import numpy
    except ImportError:
        return content, " (bytearray: copied)"
    return numpy.frombuffer(content, dtype=numpy.uint8), ""


def figures() -> list[tuple[str, str, Work]]:
    """(what, unit, work); the work does one batch and says how much it was."""
    plain, other = cast(Any, _Plain).remote(), cast(Any, _Async).remote()
    argument = bytes(10_000)
    small, megabyte, large = shoal.put(1), bytearray(1_000_000), bytearray(100_000_000)
    array, how = _array(large)
    large_ref = shoal.put(array)
    put_megabyte, put_large = _repeated(20, lambda: shoal.put(megabyte)), _repeated(1, lambda: shoal.put(large))
    return [
        ("tasks, one at a time", "tasks/s", _repeated(50, lambda: shoal.get(_empty.remote()))),
        ("tasks, batches of 1,000", "tasks/s", _batch(1000, _empty.remote)),
        (
            "tasks with a 10 kB argument",
            "tasks/s",
            _batch(1000, lambda: _empty.remote(argument)),
        ),
        ("actor calls, one at a time", "calls/s", _repeated(50, lambda: shoal.get(plain.ping.remote()))),
        ("actor calls, batches of 1,000", "calls/s", _batch(1000, plain.ping.remote)),
        ("asyncio actor calls, batches of 1,000", "calls/s", _batch(1000, other.ping.remote)),
        ("wait loop over 1,000 refs", "refs/s", _wait_loop(1000)),
        ("put of a small object", "puts/s", _repeated(1000, lambda: shoal.put(1))),
        ("get of a small object", "gets/s", _repeated(1000, lambda: shoal.get(small))),
        ("put of 1 MB", "GB/s", lambda: put_megabyte() / 1000),
        ("put of 100 MB", "GB/s", lambda: put_large() / 10),
        (f"get of 100 MB{how}", "gets/s", _repeated(5, lambda: shoal.get(large_ref))),
    ]


def rate(work: Work, seconds: float) -> float:
    """Operations a second, after one batch to warm up."""
    work()
    done, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)


def run_microbenchmark(seconds: float, num_cpus: int | None, as_json: bool) -> None:
    """Measure and print."""
    shoal.init(num_cpus=num_cpus, log_to_driver=False)
    try:
        results = [(what, unit, rate(work, seconds)) for what, unit, work in figures()]
    finally:
        shoal.shutdown()
    if as_json:
        print(json.dumps({what: {"value": value, "unit": unit} for what, unit, value in results}))
        return
    table = Table("figure", "unit", title="This machine", title_justify="left")
    table.add_column("rate", justify="right")
    for what, unit, value in results:
        table.add_row(what, unit, f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
    Console().print(table)
