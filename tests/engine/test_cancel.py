"""Cancelling: queued, waiting, running, asleep, inside get; children; with force; by somebody else."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal import exceptions

pytestmark = [pytest.mark.usefixtures("shoal_session")]

QUICK_S = 60.0  #: less than any of the tasks takes, far more than a cancel does


def fetch(refs: Any, timeout: float = 60.0) -> Any:
    return shoal.get(refs, timeout=timeout)


def assert_cancelled(ref: Any, within_s: float = QUICK_S) -> exceptions.TaskCancelledError:
    start = time.monotonic()
    with pytest.raises(exceptions.TaskCancelledError) as caught:
        shoal.get(ref, timeout=60)
    assert time.monotonic() - start < within_s
    return caught.value


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.005)


def alive(path: Path) -> bool:
    """Whether the process whose pid stands in the file still runs `beat`."""
    before = path.stat().st_mtime_ns
    time.sleep(0.3)
    return path.stat().st_mtime_ns != before


@shoal.remote
def sleep(path: Path | None = None, seconds: float = 100) -> str:
    if path is not None:
        path.write_text(str(os.getpid()))
    time.sleep(seconds)
    return "slept"


@shoal.remote
def spin(path: Path) -> None:
    path.touch()
    while True:
        pass


@shoal.remote
def beat(path: Path) -> None:
    while True:
        path.write_text(str(os.getpid()))
        time.sleep(0.02)


@shoal.remote
def nothing(*_: Any) -> str:
    return "ran"


def test_cancel_queued(tmp_path: Path) -> None:
    running = [sleep.remote(tmp_path / str(i)) for i in range(2)]
    for i in range(2):
        await_file(tmp_path / str(i))
    queued = [nothing.remote() for _ in range(5)]
    shoal.cancel(queued[2])
    assert_cancelled(queued[2])
    for ref in running:
        shoal.cancel(ref)
        assert_cancelled(ref)
    assert fetch(queued[:2] + queued[3:]) == ["ran"] * 4


def test_cancel_waiting_for_an_argument(tmp_path: Path) -> None:
    first = sleep.remote(tmp_path / "a")
    second = nothing.remote(first)
    shoal.cancel(second)
    assert_cancelled(second)
    await_file(tmp_path / "a")
    shoal.cancel(first)
    assert_cancelled(first)
    assert fetch(nothing.remote()) == "ran"


@pytest.mark.parametrize("function", [sleep, spin])
@pytest.mark.parametrize("force", [False, True])
def test_cancel_running(function: Any, force: bool, tmp_path: Path) -> None:
    ref = function.remote(tmp_path / "a")
    await_file(tmp_path / "a")
    shoal.cancel(ref, force=force)
    assert_cancelled(ref)
    assert fetch(nothing.remote()) == "ran"


def test_cancel_right_after_submission() -> None:
    for delay_s in (0, 0, 0.0005, 0.001, 0.002, 0.005) * 5:
        ref = sleep.remote()
        time.sleep(delay_s)
        shoal.cancel(ref)
        assert_cancelled(ref)
    assert fetch([nothing.remote() for _ in range(20)]) == ["ran"] * 20


def test_cancel_of_short_tasks_loses_nothing() -> None:
    refs = [nothing.remote() for _ in range(300)]
    for ref in refs[::3]:
        shoal.cancel(ref)
    outcomes = []
    for ref in refs:
        try:
            outcomes.append(fetch(ref))
        except exceptions.TaskCancelledError:
            outcomes.append("cancelled")
    assert outcomes[1::3] == outcomes[2::3] == ["ran"] * 100
    assert set(outcomes[::3]) <= {"ran", "cancelled"}


@pytest.mark.parametrize("force", [False, True])
def test_cancel_inside_get_takes_the_children_along(force: bool, tmp_path: Path) -> None:
    @shoal.remote
    def parent(path: Path) -> Any:
        return shoal.get([beat.remote(path / "child"), nothing.remote(sleep.remote())])

    ref = parent.remote(tmp_path)
    await_file(tmp_path / "child")
    shoal.cancel(ref, force=force)
    assert_cancelled(ref)
    deadline = time.monotonic() + 60
    while alive(tmp_path / "child"):
        assert time.monotonic() < deadline, "the child runs on"


def test_cancel_not_recursive_leaves_the_children(tmp_path: Path) -> None:
    @shoal.remote
    def child(path: Path) -> None:
        path.with_suffix(".began").touch()
        await_file(path.with_suffix(".go"))
        path.touch()

    @shoal.remote
    def parent(path: Path) -> Any:
        return shoal.get(child.remote(path))

    ref = parent.remote(tmp_path / "done")
    await_file(tmp_path / "done.began")
    shoal.cancel(ref, recursive=False)
    assert_cancelled(ref)
    (tmp_path / "done.go").touch()
    await_file(tmp_path / "done")


def test_cancel_of_a_finished_task_is_no_effect() -> None:
    ref = nothing.remote()
    assert fetch(ref) == "ran"
    shoal.cancel(ref)
    shoal.cancel(ref, force=True)
    assert fetch(ref) == "ran"
    shoal.cancel(shoal.put(1))
    assert fetch(nothing.remote()) == "ran"


def test_a_task_may_survive_its_cancellation(tmp_path: Path) -> None:
    @shoal.remote
    def tough(path: Path) -> str:
        try:
            path.touch()
            time.sleep(100)
        except KeyboardInterrupt:
            return "survived"
        return "slept"

    ref = tough.remote(tmp_path / "a")
    await_file(tmp_path / "a")
    shoal.cancel(ref)
    assert fetch(ref) == "survived"


def test_cancelled_tasks_are_not_retried(tmp_path: Path) -> None:
    @shoal.remote(max_retries=5, retry_exceptions=True)
    def count(path: Path) -> None:
        with path.open("a") as file:
            file.write("x")
        time.sleep(100)

    ref = count.remote(tmp_path / "a")
    await_file(tmp_path / "a")
    time.sleep(0.1)
    shoal.cancel(ref)
    assert_cancelled(ref)
    time.sleep(0.2)
    assert (tmp_path / "a").read_text() == "x"


def test_dependents_of_a_cancelled_task_fail_with_it(tmp_path: Path) -> None:
    first = sleep.remote(tmp_path / "a")
    second = nothing.remote(first)
    await_file(tmp_path / "a")
    shoal.cancel(first)
    assert_cancelled(second)


def test_cancel_a_stream(tmp_path: Path) -> None:
    @shoal.remote
    def stream(path: Path) -> Any:
        yield 1
        path.touch()
        time.sleep(100)
        yield 2

    items = stream.remote(tmp_path / "a")
    assert fetch(next(items)) == 1
    await_file(tmp_path / "a")
    shoal.cancel(items)
    assert_cancelled(next(items))
    with pytest.raises(StopIteration):
        next(items)


def test_cancel_a_stream_that_its_consumer_holds_back(tmp_path: Path) -> None:
    @shoal.remote(_generator_backpressure_num_objects=1)
    def stream(path: Path) -> Any:
        path.touch()
        yield from range(100)

    items = stream.remote(tmp_path / "a")
    await_file(tmp_path / "a")
    time.sleep(0.1)
    shoal.cancel(items)
    time.sleep(0.2)
    outcomes = []
    for ref in items:
        try:
            outcomes.append(fetch(ref))
        except exceptions.TaskCancelledError:
            outcomes.append("cancelled")
    assert outcomes[-1] == "cancelled" and len(outcomes) <= 4


@pytest.mark.parametrize("force", [False, True])
def test_cancel_by_somebody_who_borrowed_the_ref(force: bool, tmp_path: Path) -> None:
    @shoal.remote(num_cpus=0)
    def starter(path: Path) -> Any:
        return [sleep.remote(path)]

    @shoal.remote(num_cpus=0)
    def canceller(refs: list[Any]) -> None:
        shoal.cancel(refs[0], force=force)

    (ref,) = fetch(starter.remote(tmp_path / "a"))  # owned by the worker that ran `starter`
    await_file(tmp_path / "a")
    shoal.cancel(ref, force=force)
    assert_cancelled(ref)
    ours = sleep.remote(tmp_path / "b")
    await_file(tmp_path / "b")
    fetch(canceller.remote([ours]))
    assert_cancelled(ours)


def test_cancel_wants_a_ref() -> None:
    with pytest.raises(TypeError, match="ObjectRef"):
        shoal.cancel(3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_cancels_at_random_leave_nothing_unresolved(seed: int) -> None:
    rng = random.Random(seed)

    @shoal.remote
    def tree(depth: int) -> int:
        return 1 if depth == 0 else 1 + sum(shoal.get([tree.remote(depth - 1) for _ in range(2)]))

    @shoal.remote(max_retries=0)
    def crash() -> None:
        os._exit(1)

    @shoal.remote(_generator_backpressure_num_objects=2)
    def stream() -> Any:
        yield from range(5)

    makers = [
        lambda: nothing.remote(),
        lambda: sleep.remote(None, rng.random() / 5),
        lambda: tree.remote(rng.randrange(4)),
        lambda: nothing.remote(sleep.remote(None, 0.05)),
        lambda: crash.remote(),
        lambda: next(stream.remote()),
    ]
    until = time.monotonic() + 2
    while time.monotonic() < until:
        refs = []
        for _ in range(rng.randrange(1, 25)):
            refs.append(rng.choice(makers)())
            if rng.random() < 0.3:
                shoal.cancel(rng.choice(refs), force=rng.random() < 0.3)
        for ref in refs:
            try:
                fetch(ref)
            except (exceptions.TaskCancelledError, exceptions.WorkerCrashedError):
                pass
    deadline = time.monotonic() + 60
    while shoal.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, shoal.available_resources()
        time.sleep(0.05)
    assert fetch([nothing.remote() for _ in range(100)]) == ["ran"] * 100
