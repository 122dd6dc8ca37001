"""Resources at call time: what runs together, which devices are visible, and what can never run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.node_counts import eventually

import shoal
from shoal import exceptions

pytestmark = [pytest.mark.usefixtures("rich_session")]


@pytest.fixture(autouse=True, scope="module")
def rich_session() -> Iterator[None]:
    shoal.shutdown()
    saved = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    shoal.init(num_cpus=2, num_gpus=4, resources={"sea": 2, "rare": 0.5}, memory=1000 << 20, log_to_driver=False)
    yield
    shoal.shutdown()
    if saved is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = saved


def fetch(refs: Any, timeout: float = 60.0) -> Any:
    return shoal.get(refs, timeout=timeout)


@shoal.remote
def span(seconds: float = 0.15) -> tuple[float, float, list[int], str | None]:
    begin = time.time()
    time.sleep(seconds)
    return begin, time.time(), shoal.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")


def most_at_once(spans: list[Any]) -> int:
    return max(sum(other[0] <= one[0] < other[1] for other in spans) for one in spans)


@pytest.mark.parametrize(
    ("options", "together"),
    [
        ({"num_cpus": 1}, 2),
        ({"num_cpus": 2}, 1),
        ({"num_cpus": 0.5}, 4),
        ({"num_cpus": 0, "resources": {"sea": 1}}, 2),
        ({"num_cpus": 0, "resources": {"rare": 0.25}}, 2),
        ({"num_cpus": 0, "memory": 600 << 20}, 1),
        ({"num_cpus": 0, "num_gpus": 2}, 2),
    ],
)
def test_no_more_run_together_than_fit(options: dict[str, Any], together: int) -> None:
    function = span.options(**options)
    fetch([function.remote(0.01) for _ in range(together)])  # processes are there
    spans = fetch([function.remote() for _ in range(2 * together + 1)])
    assert most_at_once(spans) <= together
    if together > 1:
        assert most_at_once(spans) > 1


def test_tasks_without_cpu_are_not_held_back_by_it() -> None:
    busy = [span.remote(100) for _ in range(2)]
    fetch([span.options(num_cpus=0).remote(0.01) for _ in range(4)])
    for ref in busy:
        shoal.cancel(ref)


def test_gpus_are_shown_to_who_asked_and_to_nobody_else() -> None:
    whole = fetch([span.options(num_gpus=2).remote() for _ in range(4)])
    for _, _, ids, shown in whole:
        assert len(ids) == 2 and shown == ",".join(map(str, ids))
    for one in whole:
        for other in whole:
            if one is not other and one[0] <= other[0] < one[1]:
                assert not set(one[2]) & set(other[2])
    for _ in range(4):
        assert fetch([span.remote(0.0), span.remote(0.0)])[0][2:] == ([], None)
    assert shoal.get_gpu_ids() == []


def test_fractions_of_a_gpu_share_one() -> None:
    parts = fetch([span.options(num_cpus=0, num_gpus=0.5).remote(0.3) for _ in range(2)])
    assert [len(part[2]) for part in parts] == [1, 1]
    if parts[0][0] < parts[1][1] and parts[1][0] < parts[0][1]:
        assert parts[0][2] == parts[1][2]


def test_an_actor_keeps_its_gpus() -> None:
    @shoal.remote(num_gpus=1)
    class Holder:
        def look(self) -> Any:
            return shoal.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")

    holders = [Holder.remote() for _ in range(3)]
    seen = fetch([holder.look.remote() for holder in holders])
    assert len({ids[0] for ids, _ in seen}) == 3
    assert all(shown == str(ids[0]) for ids, shown in seen)
    assert fetch([holder.look.remote() for holder in holders]) == seen
    (free,) = fetch([span.options(num_gpus=1).remote(0.0)])
    assert free[2][0] not in {ids[0] for ids, _ in seen}


def test_thread_counts_follow_the_cpus() -> None:
    @shoal.remote
    def threads() -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    expected = os.environ.get("OMP_NUM_THREADS")
    assert fetch(threads.remote()) == (expected or "1")
    assert fetch(threads.options(num_cpus=2).remote()) == (expected or "2")
    assert fetch(threads.options(num_cpus=0.5).remote()) == (expected or "1")


def test_assigned_resources_are_told() -> None:
    @shoal.remote(num_cpus=0.5, resources={"sea": 1})
    def told() -> dict[str, float]:
        return shoal.get_runtime_context().get_assigned_resources()

    assert fetch(told.remote()) == {"CPU": 0.5, "sea": 1.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cpus": 99}, ["99 CPU", "2 CPU"]),
        ({"num_gpus": 5}, ["5 GPU", "4 GPU"]),
        ({"resources": {"nowhere": 1}}, ["1 nowhere"]),
        ({"resources": {"sea": 3}}, ["3 sea", "2 sea"]),
        ({"memory": 10 << 40}, ["memory"]),
    ],
)
def test_what_can_never_run_fails_at_once(options: dict[str, Any], words: list[str]) -> None:
    start = time.monotonic()
    for _ in range(2):  # also when it is known already
        with pytest.raises(exceptions.TaskUnschedulableError) as caught:
            fetch(span.options(**options).remote())
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert time.monotonic() - start < 20, "it is not waited for"
    # what depends on it fails with it
    with pytest.raises(exceptions.TaskUnschedulableError):
        fetch(span.remote(span.options(**options).remote()))


def test_resources_are_counted_and_come_back() -> None:
    assert shoal.cluster_resources()["GPU"] == 4
    held = span.options(num_gpus=3).remote(100)
    eventually(lambda: shoal.available_resources()["GPU"] == 1)
    shoal.cancel(held)
    eventually(lambda: shoal.available_resources().get("GPU") == 4)


def test_a_crash_gives_its_resources_back() -> None:
    @shoal.remote(num_gpus=4, max_retries=0)
    def crash() -> None:
        os._exit(1)

    for _ in range(3):
        with pytest.raises(exceptions.WorkerCrashedError):
            fetch(crash.remote())
    assert len(fetch(span.options(num_gpus=4).remote(0.0))[2]) == 4


def test_environment_variables_of_a_runtime_env() -> None:
    @shoal.remote(runtime_env={"env_vars": {"COLOUR": "blue"}})
    def colour() -> str | None:
        return os.environ.get("COLOUR")

    assert fetch(colour.remote()) == "blue"
    assert fetch(colour.options(runtime_env=None).remote()) is None
