"""What actors hold and lend: sessions with few CPUs, with GPUs, with custom resources."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from tests.engine.explanations import comes_to_say

import shoal
from shoal.exceptions import ActorUnschedulableError, GetTimeoutError

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


@shoal.remote
def double(value: int) -> int:
    return 2 * value


@shoal.remote(num_cpus=1)
class Plain:
    def get(self, value: int) -> int:
        return int(shoal.get(double.remote(value)))

    def wait(self, value: int) -> int:
        ready, _ = shoal.wait([double.remote(value)], timeout=WAIT_S)
        return int(shoal.get(ready[0]))

    def in_thread(self, value: int) -> int:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(shoal.get(double.remote(value))))
        thread.start()
        thread.join()
        return seen[0]

    def nested(self, depth: int) -> int:
        if depth == 0:
            return 0
        child = Plain.remote()
        return 1 + int(shoal.get(child.nested.remote(depth - 1)))


@shoal.remote(num_cpus=1)
class Loop:
    async def get(self, value: int) -> int:
        return int(await double.remote(value))

    async def wait(self, value: int) -> int:
        return int(shoal.get(double.remote(value)))

    async def in_thread(self, value: int) -> int:
        return int(await asyncio.to_thread(shoal.get, double.remote(value)))


@pytest.mark.parametrize("kind", [Plain, Loop, Plain.options(max_concurrency=2)], ids=["plain", "loop", "threads"])
def test_an_actor_on_the_only_cpu_lends_it(kind: Any, shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=1, log_to_driver=False)
    actor = kind.remote()
    assert get(actor.get.remote(1)) == 2
    assert get(actor.wait.remote(2)) == 4
    assert get([actor.get.remote(value) for value in range(5)]) == [0, 2, 4, 6, 8]


def test_actors_inside_actors_on_one_cpu(shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=1, log_to_driver=False)
    assert get(Plain.remote().nested.remote(6)) == 6


def test_actors_get_the_gpus_that_their_node_was_shown(
    shoal_start: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    shoal_start(num_cpus=2, num_gpus=2, log_to_driver=False)

    @shoal.remote
    class OnGpu:
        def __init__(self) -> None:
            self.early = os.environ.get("CUDA_VISIBLE_DEVICES")

        def ids(self) -> tuple[Any, Any, Any, Any]:
            context = shoal.get_runtime_context()
            return (
                self.early,
                os.environ.get("CUDA_VISIBLE_DEVICES"),
                shoal.get_gpu_ids(),
                context.get_accelerator_ids()["GPU"],
            )

    first, second = OnGpu.options(num_gpus=1).remote(), OnGpu.options(num_gpus=1).remote()
    seen = get([first.ids.remote(), second.ids.remote()])
    for early, late, gpu_ids, accelerators in seen:
        assert early == late == str(gpu_ids[0]) == accelerators[0]
    assert {early for early, _, _, _ in seen} == {"2", "3"}
    waiting = OnGpu.options(num_gpus=2).remote()
    ref = waiting.ids.remote()
    with pytest.raises(GetTimeoutError):
        shoal.get(ref, timeout=0.2)
    shoal.kill(first)
    shoal.kill(second)
    assert get(ref)[1] == "2,3"
    shoal.kill(waiting)
    halves = [OnGpu.options(num_gpus=0.5).remote() for _ in range(2)]
    shared = [late for _, late, _, _ in get([half.ids.remote() for half in halves])]
    assert shared[0] == shared[1]
    with pytest.raises(ActorUnschedulableError, match="3 GPU"):
        get(OnGpu.options(num_gpus=3).remote().ids.remote())


def test_custom_resources_of_actors(shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=1, resources={"slot": 2}, log_to_driver=False)

    @shoal.remote(resources={"slot": 1})
    class Slot:
        def pid(self) -> int:
            return os.getpid()

    slots = [Slot.remote() for _ in range(2)]
    pids = get([slot.pid.remote() for slot in slots])
    assert len(set(pids)) == 2
    third = Slot.remote()
    waiting = third.pid.remote()
    comes_to_say(waiting, "slot")
    del slots[0]
    assert get(waiting) not in pids


def test_threads_of_libraries_follow_the_cpus_of_the_actor(shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=4, log_to_driver=False)

    @shoal.remote
    class Computes:
        def threads(self) -> str | None:
            return os.environ.get("OMP_NUM_THREADS")

    if "OMP_NUM_THREADS" in os.environ:
        pytest.skip("OMP_NUM_THREADS is set here")
    assert get(Computes.options(num_cpus=2).remote().threads.remote()) == "2"
    assert get(Computes.remote().threads.remote()) == "1"


def test_fifty_actors_at_once(shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=2, log_to_driver=False)

    @shoal.remote
    class Small:
        def pid(self) -> int:
            return os.getpid()

    started = time.perf_counter()
    actors = [Small.remote() for _ in range(50)]
    pids = shoal.get([actor.pid.remote() for actor in actors], timeout=60)
    assert len(set(pids)) == 50
    assert time.perf_counter() - started < 20
    for pid in pids[:3]:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            [threads] = [line for line in file if line.startswith("Threads:")]
        assert int(threads.split()[1]) <= 2
    del actors, pids


def test_await_beside_a_blocking_get_does_not_spin(shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=2, log_to_driver=False)

    @shoal.remote
    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    @shoal.remote
    class Awaits:
        async def run(self) -> float:
            before = time.process_time()
            await sleep.remote(0.6)
            return time.process_time() - before

    async def main() -> None:
        await sleep.remote(0.7)

    assert get(Awaits.remote().run.remote()) < 0.2
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    before = time.process_time()
    get(sleep.remote(0.6))
    thread.join(WAIT_S)
    assert time.process_time() - before < 0.3
