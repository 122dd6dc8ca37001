"""The Pool: what users of multiprocessing.Pool rely on. Every case that the original can run too is checked against it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.util.files import wait_for

from shoal.util.multiprocessing import Pool

_state: dict[str, Any] = {}


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0) -> int:
    return x + y


def reciprocal(x: int) -> float:
    return 1 / x


def set_state(value: Any) -> None:
    _state["value"] = value


def get_state(_: Any = None) -> Any:
    return _state.get("value")


def get_pid(_: Any = None) -> int:
    return os.getpid()


def sleep_and_return(x: float) -> float:
    time.sleep(x)
    return x


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    import shoal

    shoal.init(num_cpus=4, ignore_reinit_error=True)
    with Pool(2) as made:
        yield made


@pytest.fixture(scope="module", params=["ours", "original"])
def either(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Ours, and the original beside it."""
    if request.param == "original":
        with multiprocessing.get_context("fork").Pool(2) as made:
            yield made
    else:
        yield request.getfixturevalue("pool")


def test_map(either: Any) -> None:
    assert either.map(square, range(20)) == [n * n for n in range(20)]
    assert either.map(square, range(7), chunksize=3) == [n * n for n in range(7)]
    assert either.map(square, iter([])) == []
    assert either.map(square, (n for n in range(3))) == [0, 1, 4]


def test_starmap_and_apply(either: Any) -> None:
    assert either.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
    assert either.starmap(add, zip([1, 2], [3, 4], strict=True), chunksize=1) == [4, 6]
    assert either.apply(add, (1,), {"y": 5}) == 6
    assert either.apply(add, [2]) == 2


def test_async(either: Any, tmp_path: Path) -> None:
    result = either.apply_async(add, (1, 2))
    assert result.get() == 3
    assert result.ready()
    assert result.successful()
    assert either.map_async(square, range(5)).get(timeout=30) == [0, 1, 4, 9, 16]
    assert either.starmap_async(add, [(1, 1)]).get() == [2]
    slow = either.apply_async(wait_for, (tmp_path / "go",))
    assert not slow.ready()
    with pytest.raises(ValueError, match="not ready"):
        slow.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        slow.get(timeout=0.05)
    (tmp_path / "go").touch()
    slow.wait()
    assert slow.get()


def test_errors_are_the_users_own(either: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        either.apply(reciprocal, (0,))
    assert type(caught.value) is ZeroDivisionError
    assert "reciprocal" in str(caught.value.__cause__)
    result = either.map_async(reciprocal, [1, 0, 2])
    with pytest.raises(ZeroDivisionError):
        result.get()
    assert not result.successful()
    assert either.map(square, [3]) == [9], "the pool goes on after an error"


def test_callbacks(either: Any) -> None:
    seen: list[Any] = []
    result = either.apply_async(add, (1, 2), callback=seen.append, error_callback=lambda error: seen.append("error"))
    result.get()
    assert seen == [3], "the callback has run when get returns"
    result = either.map_async(
        reciprocal, [0], callback=seen.append, error_callback=lambda error: seen.append(type(error))
    )
    with pytest.raises(ZeroDivisionError):
        result.get()
    assert seen == [3, ZeroDivisionError]
    result = either.map_async(square, [1, 2], callback=seen.append)
    result.wait()
    assert seen[-1] == [1, 4]
    empty = threading.Event()
    either.map_async(square, [], callback=lambda values: empty.set()).get()


def test_imap(either: Any, tmp_path: Path) -> None:
    assert list(either.imap(square, range(30))) == [n * n for n in range(30)]
    assert list(either.imap(square, range(30), chunksize=7)) == [n * n for n in range(30)]
    assert sorted(either.imap_unordered(square, range(30), chunksize=4)) == sorted(n * n for n in range(30))
    assert list(either.imap_unordered(sleep_and_return, [0.6, 0.0])) == [0.0, 0.6]
    iterator = either.imap(wait_for, [tmp_path / "go"])
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0.05)
    (tmp_path / "go").touch()
    assert iterator.next()
    with pytest.raises(StopIteration):
        iterator.next()


def test_imap_errors_come_in_their_turn(either: Any) -> None:
    iterator = either.imap(reciprocal, [1, 0, 2])
    assert next(iterator) == 1.0
    with pytest.raises(ZeroDivisionError):
        next(iterator)
    assert next(iterator) == 0.5

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("input broke")

    iterator = either.imap(square, broken())
    assert next(iterator) == 1
    with pytest.raises(OSError, match="input broke"):
        next(iterator)


def test_chunksize_must_be_positive(either: Any) -> None:
    with pytest.raises(ValueError, match="1"):
        either.imap(square, [1], chunksize=0)


def test_work_is_spread_and_processes_stay(pool: Pool) -> None:
    pids = set(pool.map(get_pid, range(50), chunksize=1))
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert set(pool.map(get_pid, range(10), chunksize=1)) <= pids


def test_lambdas_closures_and_big_functions(pool: Pool) -> None:
    offset = 10
    assert pool.map(lambda x: x + offset, range(3)) == [10, 11, 12]
    big = b"x" * 100_000
    assert pool.map(lambda x: len(big) + x, [1, 2]) == [100_001, 100_002]


def test_imap_of_an_endless_input(pool: Pool) -> None:
    assert list(itertools.islice(pool.imap(square, itertools.count()), 5)) == [0, 1, 4, 9, 16]


def test_initializer(shoal_shared: ModuleType) -> None:
    with Pool(2, initializer=set_state, initargs=("ready",)) as made:
        assert made.map(get_state, range(10), chunksize=1) == ["ready"] * 10


def test_maxtasksperchild(shoal_shared: ModuleType) -> None:
    with Pool(1, maxtasksperchild=2) as made:
        pids = made.map(get_pid, range(6), chunksize=1)
    assert len(set(pids)) == 3


def test_close_and_join(shoal_shared: ModuleType) -> None:
    made = Pool(2)
    result = made.map_async(sleep_and_return, [0.05] * 4, chunksize=1)
    with pytest.raises(ValueError, match="still running"):
        made.join()
    made.close()
    with pytest.raises(ValueError, match="not running"):
        made.apply(square, (1,))
    made.join()
    assert result.ready()
    assert result.get() == [0.05] * 4


def test_terminate_ends_what_runs(shoal_shared: ModuleType) -> None:
    made = Pool(1)
    made.apply(get_pid)
    result = made.apply_async(time.sleep, (60,))
    made.terminate()
    made.join()
    with pytest.raises(RuntimeError, match="terminated"):
        result.get(timeout=60)


def test_a_killed_process_costs_only_what_it_ran(shoal_shared: ModuleType) -> None:
    def kill_self_at_3(x: int) -> int:
        if x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return x

    with Pool(1) as made:
        made.apply(get_pid)
        results = made.imap(kill_self_at_3, range(8))
        seen: list[Any] = []
        for _ in range(8):
            try:
                seen.append(results.next(timeout=60))
            except shoal_shared.exceptions.ShoalError:
                seen.append("died")
    assert seen == [0, 1, 2, "died", 4, 5, 6, 7]


def test_bad_arguments(shoal_shared: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pool(0)
    with pytest.raises(TypeError, match="callable"):
        Pool(1, initializer=5)  # type: ignore[arg-type]


def test_a_pool_does_not_pickle(pool: Pool) -> None:
    import pickle

    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)
