"""The Executor: what users of concurrent.futures rely on."""

from __future__ import annotations

import math
import os
import threading
import time
from concurrent import futures
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from tests.util.files import wait_for

from shoal.util import Executor


def add(x: int, y: int = 0) -> int:
    return x + y


def test_submit(shoal_shared: ModuleType) -> None:
    with Executor() as executor:
        assert executor.submit(add, 1, y=2).result() == 3
        assert executor.submit(lambda: 5).result() == 5
        assert executor.submit(partial(add, 1), 6).result() == 7
        assert executor.submit(math.sqrt, 9).result() == 3
        assert executor.submit(str.upper, "a").result() == "A"
        assert executor.submit("ab".replace, "a", "c").result() == "cb"
        assert executor.submit(os.getpid).result() != os.getpid()
        # names that an executor's own parameters could shadow
        assert executor.submit(lambda fn, args: fn + args, fn=1, args=2).result() == 3


def test_errors_are_the_users_own(shoal_shared: ModuleType) -> None:
    with Executor() as executor:
        future = executor.submit(lambda: {}["missing"])
        with pytest.raises(KeyError) as caught:
            future.result()
        assert type(caught.value) is KeyError
        assert type(future.exception()) is KeyError
        assert "missing" in str(caught.value.__cause__)


def test_time_out(shoal_shared: ModuleType, tmp_path: Path) -> None:
    with Executor() as executor:
        future = executor.submit(wait_for, tmp_path / "go")
        with pytest.raises(futures.TimeoutError):
            future.result(timeout=0.05)
        (tmp_path / "go").touch()
        assert future.result()


def test_map(shoal_shared: ModuleType) -> None:
    with Executor() as executor:
        assert list(executor.map(add, range(5), range(5))) == [0, 2, 4, 6, 8]
        assert list(executor.map(add, range(11), range(20), chunksize=4)) == [2 * n for n in range(11)]
        assert list(executor.map(add, [])) == []
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(add, [1], chunksize=0)
        with pytest.raises(ZeroDivisionError):
            list(executor.map(lambda x: 1 / x, [1, 0]))


def test_as_completed_wait_and_callbacks(shoal_shared: ModuleType) -> None:
    with Executor() as executor:
        some = [executor.submit(add, n) for n in range(10)]
        assert sorted(future.result() for future in futures.as_completed(some)) == list(range(10))
        done, rest = futures.wait([executor.submit(add, 1)])
        assert len(done) == 1
        assert not rest
        called = threading.Event()
        executor.submit(add, 1).add_done_callback(lambda future: called.set())
        assert called.wait(60)


def test_max_workers_bounds_what_runs(shoal_shared: ModuleType) -> None:
    def span() -> tuple[float, float]:
        start = time.time()
        time.sleep(0.05)
        return start, time.time()

    with Executor(max_workers=2, num_cpus=0) as executor:
        spans = [future.result() for future in [executor.submit(span) for _ in range(8)]]
    for start, _ in spans:
        assert sum(begin <= start < end for begin, end in spans) <= 2


def test_shutdown(shoal_shared: ModuleType) -> None:
    executor = Executor()
    future = executor.submit(time.sleep, 0.3)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(add, 1)
    assert shoal_shared.is_initialized(), "the session goes on"


def test_cancel(shoal_shared: ModuleType, tmp_path: Path) -> None:
    executor = Executor(max_workers=1)
    running = executor.submit(wait_for, tmp_path / "go")
    waiting = executor.submit(add, 1)
    assert waiting.cancel()
    assert waiting.cancelled()
    with pytest.raises(futures.CancelledError):
        waiting.result()
    never = [executor.submit(add, n) for n in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in never)
    (tmp_path / "go").touch()
    executor.shutdown()
    assert running.done()


def test_nested(shoal_shared: ModuleType) -> None:
    def outer(n: int) -> int:
        with Executor() as inner:
            return sum(inner.map(add, range(n)))

    with Executor() as executor:
        assert list(executor.map(outer, [3, 4])) == [3, 6]


def test_options(shoal_shared: ModuleType) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        Executor(max_workers=0)
    with pytest.raises((TypeError, ValueError)):
        Executor(no_such_option=1).submit(add, 1)
