"""`wait`: how many, which, in what order, and loops over its own rest."""

from __future__ import annotations

import pickle
import random
import time
from typing import Any

import pytest

import shoal

pytestmark = pytest.mark.usefixtures("shoal_session")


@shoal.remote
def same(value: Any) -> Any:
    return value


@shoal.remote(num_cpus=0)
def slow(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


@shoal.remote
def fail() -> None:
    raise ValueError("no")


@pytest.fixture
def never() -> Any:
    """A ref that is not ready as long as the test runs."""
    ref = slow.remote(None, 100)
    yield ref
    shoal.cancel(ref)


def test_never_more_than_asked_for() -> None:
    refs = [shoal.put(i) for i in range(5)]
    for count in range(1, 6):
        ready, rest = shoal.wait(refs, num_returns=count, timeout=60)
        assert ready == refs[:count]
        assert rest == refs[count:]


def test_both_lists_keep_the_order(never: Any) -> None:
    a, b, c = shoal.put(1), shoal.put(2), shoal.put(3)
    ready, rest = shoal.wait([never, a, b, c], num_returns=2, timeout=60)
    assert (ready, rest) == ([a, b], [never, c])
    ready, rest = shoal.wait([a, never, b], num_returns=3, timeout=0.01)
    assert (ready, rest) == ([a, b], [never])


def test_timeouts(never: Any) -> None:
    start = time.perf_counter()
    assert shoal.wait([never], timeout=0) == ([], [never])
    assert time.perf_counter() - start < 10
    assert shoal.wait([never], timeout=0.05) == ([], [never])
    assert 0.04 < time.perf_counter() - start < 20


def test_timeout_zero_polls() -> None:
    ref = same.remote(1)
    deadline = time.monotonic() + 60
    while not shoal.wait([ref], timeout=0)[0]:
        assert time.monotonic() < deadline


def test_waits_for_the_first_to_come() -> None:
    late, soon = slow.remote("late", 100), slow.remote("soon", 0.05)
    ready, rest = shoal.wait([late, soon], timeout=60)
    assert (ready, rest) == ([soon], [late])
    shoal.cancel(late)


def test_failed_tasks_are_ready() -> None:
    ref = fail.remote()
    assert shoal.wait([ref], timeout=60) == ([ref], [])


def test_empty() -> None:
    assert shoal.wait([]) == ([], [])


@pytest.mark.parametrize("wrong", [0, -1, 3])
def test_num_returns_out_of_range(wrong: int) -> None:
    with pytest.raises(ValueError, match="num_returns"):
        shoal.wait([shoal.put(1), shoal.put(2)], num_returns=wrong)


def test_bad_input() -> None:
    ref = shoal.put(1)
    for wrong in (ref, (ref,), {ref}, iter([ref]), None, 1):
        with pytest.raises(TypeError, match="list"):
            shoal.wait(wrong)
    with pytest.raises(TypeError, match="ObjectRef"):
        shoal.wait([ref, 1])
    with pytest.raises(ValueError, match="duplicates"):
        shoal.wait([ref, ref])
    with pytest.raises(ValueError, match="negative"):
        shoal.wait([ref], timeout=-1)


def test_same_ref_through_a_task_is_a_duplicate() -> None:
    ref = shoal.put(1)
    back = shoal.get(same.remote([ref]))[0]
    with pytest.raises(ValueError, match="duplicates"):
        shoal.wait([ref, back])


def test_fetch_local_false() -> None:
    ref = same.remote(1)
    assert shoal.wait([ref], fetch_local=False, timeout=60) == ([ref], [])


def test_generators_are_ready_with_an_item() -> None:
    @shoal.remote
    def items(pause: float) -> Any:
        time.sleep(pause)
        yield 1
        time.sleep(pause)
        yield 2

    gen, ref = items.remote(0.05), slow.remote(1, 100)
    ready, rest = shoal.wait([ref, gen], timeout=60)
    assert ready == [gen]
    assert rest == [ref]
    assert shoal.get(next(gen)) == 1
    assert [shoal.get(item) for item in gen] == [2]
    assert shoal.wait([gen], timeout=0) == ([gen], [])  # its end is known
    shoal.cancel(ref)


def test_inside_tasks_and_with_borrowed_refs() -> None:
    @shoal.remote
    def collect(refs: list[Any]) -> list[Any]:
        found = []
        while refs:
            ready, refs = shoal.wait(refs, timeout=60)
            found += shoal.get(ready)
        return sorted(found)

    assert shoal.get(collect.remote([slow.remote(i, 0.01 * i) for i in range(12)]), timeout=60) == list(range(12))


@pytest.mark.parametrize("count", [3, 50, 1000])
def test_loop_over_the_rest(count: int) -> None:
    refs: list[Any] = [same.remote(i) for i in range(count)]
    seen = []
    while refs:
        before = len(refs)
        ready, refs = shoal.wait(refs, timeout=60)
        assert len(ready) == 1
        assert len(refs) == before - 1
        seen += shoal.get(ready)
    assert sorted(seen) == list(range(count))


def test_loop_takes_the_first_ready_in_order() -> None:
    refs: list[Any] = [shoal.put(i) for i in range(20)]
    seen = []
    while refs:
        ready, refs = shoal.wait(refs, num_returns=min(3, len(refs)), timeout=60)
        seen += shoal.get(ready)
    assert seen == list(range(20))


def test_loop_with_timeouts_and_new_work_in_between() -> None:
    flying: list[Any] = [slow.remote(i, 0.02 * (i % 5)) for i in range(20)]
    added, seen = 20, []
    while flying:
        ready, flying = shoal.wait(flying, num_returns=min(2, len(flying)), timeout=0.01)
        seen += shoal.get(ready)
        if added < 40:
            flying.append(slow.remote(added, 0.01))
            added += 1
    assert sorted(seen) == list(range(40))


def test_rests_changed_by_the_user(never: Any) -> None:
    """Whatever is done to a rest, the next wait sees the list as it is."""
    rng = random.Random(7)
    for _ in range(30):
        refs: list[Any] = [slow.remote(i, rng.random() * 0.03) for i in range(16)]
        ready, rest = shoal.wait(refs, timeout=60)
        ready, rest = shoal.wait(rest, timeout=60)  # a session has begun
        change = rng.randrange(7)
        if change == 0:
            rng.shuffle(rest)
        elif change == 1:
            del rest[rng.randrange(len(rest)) :]
        elif change == 2:
            rest[rng.randrange(len(rest))] = shoal.put("new")
        elif change == 3:
            rest.reverse()
        elif change == 4:
            rest.insert(rng.randrange(len(rest)), never)
            rest.pop()
        elif change == 5:
            rest[:] = [never] * 0 + rest[::2]
        else:
            rest = [*rest[1:], rest[0]]
        if not rest:
            continue
        as_given = list(rest)
        count = min(len(rest) - (never in rest), 3)
        if not count:
            continue
        ready, rest = shoal.wait(rest, num_returns=count, timeout=60)
        assert len(ready) == count
        assert [ref for ref in as_given if ref in set(ready)] == ready
        assert [ref for ref in as_given if ref not in set(ready)] == rest
        assert shoal.wait(ready, num_returns=count, timeout=0)[0] == ready


def test_only_the_replaced_ref_comes(never: Any) -> None:
    others = [slow.remote(None, 30) for _ in range(10)]
    rest = shoal.wait(others, timeout=0)[1]
    rest = shoal.wait(rest, timeout=0)[1]
    rest[4] = expected = slow.remote("x", 0.05)
    assert shoal.wait(rest, timeout=60)[0] == [expected]
    for ref in others:
        shoal.cancel(ref)


def test_a_rest_is_a_list() -> None:
    refs = [shoal.put(i) for i in range(12)]
    rest = shoal.wait(refs)[1]
    assert isinstance(rest, list)
    assert rest == refs[1:]
    back = shoal.get(same.remote(rest), timeout=60)
    assert back == rest
    assert type(back) is list
    assert shoal.get(rest) == list(range(1, 12))
    assert type(pickle.loads(pickle.dumps(shoal.wait([shoal.put(1)])[1]))) is list
    assert rest + refs[:1] == refs[1:] + refs[:1]


def test_rests_that_are_dropped_leave_nothing_behind(never: Any) -> None:
    others = [slow.remote(None, 30) for _ in range(8)]
    for _ in range(50):
        rest = shoal.wait([never, *others], timeout=0)[1]
        rest = shoal.wait(rest, timeout=0)[1]
        rest = shoal.wait(rest, timeout=0)[1]
    assert len(never._entry.waiters) <= 2
    for ref in others:
        shoal.cancel(ref)


def test_wait_in_threads_on_the_same_refs() -> None:
    from concurrent.futures import ThreadPoolExecutor

    refs: list[Any] = [slow.remote(i, 0.01 * i) for i in range(16)]
    rest = shoal.wait(refs, timeout=60)[1]

    def drain(_: int) -> int:
        left, seen = rest, 1
        while left:
            ready, left = shoal.wait(left, timeout=60)
            seen += len(ready)
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drain, range(4))) == [16] * 4
