"""Tasks that wait for tasks: no deadlock, no process beyond need, the CPU lent and taken back."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

import shoal

pytestmark = [pytest.mark.usefixtures("shoal_session"), pytest.mark.timeout(120)]


def fetch(refs: Any, timeout: float = 60.0) -> Any:
    return shoal.get(refs, timeout=timeout)


@shoal.remote
def fib(n: int) -> int:
    return n if n < 2 else sum(shoal.get([fib.remote(n - 1), fib.remote(n - 2)]))


@shoal.remote
def down(n: int) -> int:
    return 0 if n == 0 else 1 + shoal.get(down.remote(n - 1))


@shoal.remote
def even(n: int) -> bool:
    return True if n == 0 else shoal.get(odd.remote(n - 1))


@shoal.remote
def odd(n: int) -> bool:
    return False if n == 0 else shoal.get(even.remote(n - 1))


def test_recursion() -> None:
    assert fetch(fib.remote(9)) == 34


def test_a_deep_chain() -> None:
    assert fetch(down.remote(120)) == 120


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_chain_of_a_thousand() -> None:
    assert fetch(down.remote(1000), 250) == 1000


def test_mutual_recursion() -> None:
    assert fetch(even.remote(25)) is False


def test_recursion_with_wait_and_await() -> None:
    @shoal.remote
    def waits(n: int) -> int:
        if n == 0:
            return 0
        refs = [waits.remote(n - 1) for _ in range(2)]
        ready, rest = shoal.wait(refs, num_returns=2)
        assert not rest
        return sum(shoal.get(ready)) + 1

    @shoal.remote
    def awaits(n: int) -> int:
        import asyncio

        async def child() -> int:
            return int(await awaits.remote(n - 1))

        return 0 if n == 0 else asyncio.run(child()) + 1

    assert fetch(waits.remote(4)) == 15
    assert fetch(awaits.remote(10)) == 10


def test_more_parents_than_cpus() -> None:
    @shoal.remote
    def child(x: int) -> int:
        return x

    @shoal.remote
    def parent(x: int) -> int:
        return sum(shoal.get([child.remote(x + i) for i in range(10)]))

    assert fetch([parent.remote(x) for x in range(40)]) == [10 * x + 45 for x in range(40)]


def test_a_blocked_task_lends_its_cpu_and_children_go_first() -> None:
    @shoal.remote(num_cpus=2)
    def parent() -> Any:
        @shoal.remote(num_cpus=2)
        def child() -> str:
            return "child ran"

        return shoal.get(child.remote())

    assert fetch([parent.remote() for _ in range(5)]) == ["child ran"] * 5


def test_an_actor_that_waits_lends_its_cpu() -> None:
    @shoal.remote(num_cpus=2)
    class Waiting:
        def call(self) -> Any:
            return shoal.get(fib.remote(4))

    assert fetch(Waiting.remote().call.remote()) == 3


def test_a_parent_does_not_run_beside_its_peers_for_long() -> None:
    """Those that resume oversubscribe for a moment only: never many more than the CPUs compute at once."""

    @shoal.remote
    def burn(seconds: float) -> tuple[float, float]:
        begin = time.time()
        while time.time() < begin + seconds:
            pass
        return begin, time.time()

    spans = fetch([burn.remote(0.05) for _ in range(10)])
    for begin, _ in spans:
        assert sum(other_begin <= begin < other_end for other_begin, other_end in spans) <= 2


def test_processes_are_reused_in_a_wide_tree() -> None:
    @shoal.remote
    def leaf() -> int:
        return os.getpid()

    @shoal.remote
    def branch() -> set[int]:
        return set(shoal.get([leaf.remote() for _ in range(20)])) | {os.getpid()}

    pids: set[int] = set().union(*fetch([branch.remote() for _ in range(20)]))
    assert len(pids) <= 60


def test_nested_submission_without_waiting() -> None:
    @shoal.remote
    def leaf(x: int) -> int:
        return x

    @shoal.remote
    def starts(n: int) -> list[Any]:
        return [leaf.remote(i) for i in range(n)]

    refs = [ref for refs in fetch([starts.remote(50) for _ in range(6)]) for ref in refs]
    assert fetch(refs) == list(range(50)) * 6


def test_threads_of_a_task_wait_while_it_computes() -> None:
    @shoal.remote
    def threaded() -> int:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            return sum(pool.map(lambda n: shoal.get(fib.remote(n)), [3, 4, 5, 3]))

    assert fetch([threaded.remote() for _ in range(3)]) == [2 + 3 + 5 + 2] * 3
