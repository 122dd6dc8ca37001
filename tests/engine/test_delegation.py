"""Tail delegation and batched functions."""

from __future__ import annotations

from types import ModuleType

import pytest


def test_a_loop_of_any_length_on_one_worker(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    def step(number: int, left: int) -> object:
        return step.delegate(number + left, left - 1) if left else number

    assert shoal_shared.get(step.remote(0, 50_000)) == 50_000 * 50_001 // 2


def test_refs_errors_and_several_returns_pass_through(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    def pair(a: int, b: int) -> tuple[int, int]:
        return a, b

    @shoal_shared.remote
    def fails(reason: str) -> None:
        raise KeyError(reason)

    @shoal_shared.remote(num_returns=2)
    def first(ref: list) -> object:
        return pair.delegate(ref[0], b=7)

    @shoal_shared.remote
    def second() -> object:
        return fails.delegate("gone")

    assert shoal_shared.get(first.remote([shoal_shared.put(5)])) == [5, 7]
    with pytest.raises(KeyError, match="gone"):
        shoal_shared.get(second.remote())


def test_a_call_that_asks_for_more_is_a_task_of_its_own(shoal_shared: ModuleType) -> None:
    import os

    @shoal_shared.remote(num_cpus=2)
    def wide(pid: int) -> tuple[bool, float]:
        return pid == os.getpid(), shoal_shared.get_runtime_context().get_assigned_resources()["CPU"]

    @shoal_shared.remote(num_cpus=0.5)
    def narrow(pid: int) -> bool:
        return pid == os.getpid()

    @shoal_shared.remote
    def begin(to: str) -> object:
        return (wide if to == "wide" else narrow).delegate(os.getpid())

    assert shoal_shared.get(begin.remote("wide")) == (False, 2.0)
    assert shoal_shared.get(begin.remote("narrow")) is True


def test_misuse_says_so(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    def f(x: int) -> int:
        return x

    @shoal_shared.remote
    def inside() -> list:
        return [f.delegate(1)]

    @shoal_shared.remote
    def items() -> object:
        yield 1

    with pytest.raises(TypeError):
        f.delegate()
    with pytest.raises(TypeError, match="is a generator"):
        items.delegate()
    with pytest.raises(Exception, match="to be returned by a task"):
        shoal_shared.get(inside.remote())


def test_calls_that_wait_together_become_one(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote(batch=1000)
    def add(lefts: list[int], rights: list[int]) -> list[int]:
        return [left + right for left, right in zip(lefts, rights, strict=True)]

    # Four sums of sixteen numbers each: a tree of four levels, 60 additions.
    level = [[add.remote(2 * k, 2 * k + 1) for k in range(8)] for _ in range(4)]
    while len(level[0]) > 1:
        level = [[add.remote(*refs[at : at + 2]) for at in range(0, len(refs), 2)] for refs in level]
    assert shoal_shared.get([refs[0] for refs in level]) == [120] * 4
    assert 4 <= shoal_shared.get(add.calls()) < 30


def test_batches_have_a_size_and_errors_reach_their_callers(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote(batch=10)
    def half(numbers: list[int]) -> list[float]:
        assert len(numbers) <= 10
        if -1 in numbers:
            raise ValueError("no halves of -1")
        return [number / 2 for number in numbers] if numbers != [3] else []

    assert shoal_shared.get([half.remote(number) for number in range(100)]) == [number / 2 for number in range(100)]
    with pytest.raises(ValueError, match="no halves"):
        shoal_shared.get(half.remote(-1))
    with pytest.raises(ValueError, match="a list of 1 results"):
        shoal_shared.get(half.remote(3))
    with pytest.raises(TypeError, match="takes 1 arguments"):
        half.remote(1, 2)

    @shoal_shared.remote
    def nested(number: int) -> float:
        return shoal_shared.get(half.remote(number))

    assert shoal_shared.get(nested.remote(8)) == 4.0


def test_wrong_options_of_batches_are_refused_at_once(shoal_shared: ModuleType) -> None:
    with pytest.raises(ValueError, match="batch must be"):
        shoal_shared.remote(batch=0)(len)
    with pytest.raises(Exception, match="num_cups"):
        shoal_shared.remote(batch=2, num_cups=1)(lambda numbers: numbers)


def test_both_in_local_mode(shoal_start) -> None:  # noqa: ANN001
    shoal = shoal_start(local_mode=True)

    @shoal.remote
    def step(number: int, left: int) -> object:
        return step.delegate(number + left, left - 1) if left else number

    @shoal.remote(batch=4)
    def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    assert shoal.get(step.remote(0, 1000)) == 500_500
    assert shoal.get([double.remote(number) for number in range(3)]) == [0, 2, 4]
