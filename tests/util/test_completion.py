"""as_completed and map_unordered."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import ModuleType

import pytest

from shoal.util import as_completed, map_unordered


def test_as_completed_gives_the_fast_first(shoal_shared: ModuleType, tmp_path: Path) -> None:
    @shoal_shared.remote(num_cpus=0)
    def wait_for(name: str) -> str:
        while not (tmp_path / name).exists():
            time.sleep(0.01)
        return name

    results = as_completed([wait_for.remote(name) for name in "abc"])
    for name in "cba":
        (tmp_path / name).touch()
        assert next(results) == name


def test_as_completed_of_many_and_of_refs(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    def square(x: int) -> int:
        return x * x

    refs = [square.remote(n) for n in range(300)]
    assert sorted(as_completed(refs, chunk_size=7)) == [n * n for n in range(300)]
    given = list(as_completed([*refs, refs[0]], yield_obj_refs=True))
    assert len(given) == 300
    assert set(given) == set(refs)
    assert list(as_completed([])) == []
    with pytest.raises(ValueError, match="chunk_size"):
        next(as_completed(refs, chunk_size=0))


def test_as_completed_raises_what_a_task_raised(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError):
        list(as_completed([fail.remote()]))
    assert len(list(as_completed([fail.remote()], yield_obj_refs=True))) == 1


def test_map_unordered_reads_only_as_far_as_it_may(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    def same(x: int) -> int:
        return x

    read = 0

    def endless() -> itertools.count[int]:
        nonlocal read
        for number in itertools.count():
            read += 1
            yield number

    results = map_unordered(same, endless(), backpressure_size=20, chunk_size=5)
    seen = [next(results) for _ in range(50)]
    assert len(set(seen)) == 50
    assert read <= 75
    assert sorted(map_unordered(same, range(30), backpressure_size=None)) == list(range(30))
    assert len(list(map_unordered(same, range(5), yield_obj_refs=True))) == 5


def test_map_unordered_over_an_actor_method(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    class Adder:
        def add_one(self, x: int) -> int:
            return x + 1

    adder = Adder.remote()
    assert sorted(map_unordered(adder.add_one, range(10))) == list(range(1, 11))


def test_map_unordered_refuses_nonsense(shoal_shared: ModuleType) -> None:
    with pytest.raises(TypeError, match="remote function"):
        next(map_unordered(len, [1]))

    @shoal_shared.remote
    def same(x: int) -> int:
        return x

    with pytest.raises(ValueError, match="backpressure_size"):
        next(map_unordered(same, [1], backpressure_size=2, chunk_size=10))
