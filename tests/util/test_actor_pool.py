"""ActorPool: order, balance, time-outs, membership."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shoal.util import ActorPool


@pytest.fixture
def actors(shoal_shared: ModuleType) -> list[Any]:
    @shoal_shared.remote(num_cpus=0)
    class Worker:
        def double(self, value: int) -> int:
            return 2 * value

        def sleep(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

        def wait_file(self, path: Path) -> str:
            for _ in range(6000):
                if path.exists():
                    return "there"
                time.sleep(0.01)
            return "never came"

        def touch(self, path: Path) -> str:
            path.touch()
            return "touched"

        def fail(self, value: int) -> int:
            raise ValueError(f"no {value}")

    return [Worker.remote() for _ in range(2)]


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def sleep(actor: Any, value: float) -> Any:
    return actor.sleep.remote(value)


def test_map_keeps_order(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    assert list(pool.map(double, range(20))) == [2 * n for n in range(20)]
    assert list(pool.map(double, [7])) == [14], "a pool can be used again"
    assert not pool.has_next()


def test_map_unordered_gives_everything(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    assert sorted(pool.map_unordered(double, range(20))) == [2 * n for n in range(20)]
    assert list(pool.map_unordered(sleep, [0.5, 0.01])) == [0.01, 0.5]


def test_submit_and_get_next(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    for value in range(5):
        pool.submit(double, value)
    assert pool.has_next()
    assert not pool.has_free()
    assert [pool.get_next() for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_a_slow_first_task_leaves_the_others_working(actors: list[Any], tmp_path: Path) -> None:
    pool = ActorPool(actors)
    pool.submit(lambda actor, path: actor.wait_file.remote(path), tmp_path / "last")
    for value in range(2):
        pool.submit(double, value)
    pool.submit(lambda actor, path: actor.touch.remote(path), tmp_path / "last")
    assert [pool.get_next() for _ in range(4)] == ["there", 0, 2, "touched"]


def test_time_out(actors: list[Any], tmp_path: Path) -> None:
    pool = ActorPool(actors)
    pool.submit(lambda actor, path: actor.wait_file.remote(path), tmp_path / "go")
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.05)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.05)
    (tmp_path / "go").touch()
    assert pool.get_next() == "there", "a result that was late can still be had"


def test_ignored_time_out_gives_the_result_up(actors: list[Any], tmp_path: Path) -> None:
    pool = ActorPool(actors)
    pool.submit(lambda actor, path: actor.wait_file.remote(path), tmp_path / "go")
    pool.submit(double, 3)
    assert pool.get_next(timeout=0.05, ignore_if_timedout=True) is None
    assert pool.get_next() == 6


def test_ordered_and_unordered_mix(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    for value in range(4):
        pool.submit(double, value)
    seen = [pool.get_next_unordered(), pool.get_next(), pool.get_next_unordered(), pool.get_next()]
    assert sorted(seen) == [0, 2, 4, 6]
    assert not pool.has_next()


def test_an_error_keeps_the_actor_in_the_pool(actors: list[Any]) -> None:
    pool = ActorPool(actors[:1])
    pool.submit(lambda actor, value: actor.fail.remote(value), 1)
    pool.submit(double, 2)
    with pytest.raises(ValueError, match="no 1"):
        pool.get_next()
    assert pool.get_next() == 4


def test_a_call_with_several_results_is_refused_and_keeps_its_actor(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    with pytest.raises(TypeError, match="one result"):
        pool.submit(lambda actor, value: [actor.double.remote(value)] * 2, 1)
    assert {pool.pop_idle(), pool.pop_idle()} == set(actors)


def test_push_and_pop(actors: list[Any]) -> None:
    pool = ActorPool(actors[:1])
    with pytest.raises(ValueError, match="already"):
        pool.push(actors[0])
    actor = pool.pop_idle()
    assert actor is not None
    assert pool.pop_idle() is None
    assert not pool.has_free()
    pool.submit(double, 1)
    with pytest.raises(RuntimeError, match="no actors"):
        pool.get_next()
    pool.push(actor)
    assert pool.get_next() == 2
    pool.push(actors[1])
    assert list(pool.map(double, range(4))) == [0, 2, 4, 6]
