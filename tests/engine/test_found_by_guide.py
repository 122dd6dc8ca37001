"""What a new user met while the guide was written, and what the guide promises beyond its programs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.explanations import comes_to_say

import shoal

pytestmark = pytest.mark.usefixtures("shoal_session")

SOON_S = 60.0


@shoal.remote
class Adder:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value


@shoal.remote
def slow_number(seconds: float) -> int:
    time.sleep(seconds)
    return 1


def test_calls_after_kill_fail_always() -> None:
    """The kill goes through the daemon, the call straight to the actor: the call must not be the faster one."""
    for _ in range(10):
        adder = Adder.remote()
        shoal.get(adder.add.remote(), timeout=SOON_S)
        shoal.kill(adder)
        with pytest.raises(shoal.exceptions.ActorDiedError):
            shoal.get(adder.add.remote(), timeout=SOON_S)


def test_kill_of_an_actor_that_waits_for_its_arguments() -> None:
    adder = Adder.remote(slow_number.remote(0.3))
    shoal.kill(adder)
    with pytest.raises(shoal.exceptions.ActorDiedError):
        shoal.get(adder.add.remote(), timeout=SOON_S)


def test_time_out_says_what_an_actor_waits_for() -> None:
    holder = Adder.options(num_cpus=2).remote()
    shoal.get(holder.add.remote(), timeout=SOON_S)
    waiting = Adder.options(num_cpus=2).remote()
    comes_to_say(waiting.add.remote(), r"asks for 2 CPU.*held by 1 x actor Adder")
    shoal.kill(holder)
    assert shoal.get(waiting.add.remote(), timeout=SOON_S) >= 1


def test_init_tells_of_options_that_it_does_not_have() -> None:
    shoal.shutdown()
    try:
        with pytest.raises(TypeError, match="num_cpu'; did you mean 'num_cpus'"):
            shoal.init(num_cpu=2)
        with pytest.raises(ValueError, match="runtime_env has the key 'pip'"):
            shoal.init(runtime_env={"pip": ["numpy"]})
        with pytest.raises(ConnectionError, match="no client that lives outside"):
            shoal.init(address="ray://127.0.0.1:10001")
    finally:
        shoal.shutdown()
        shoal.init(num_cpus=2, log_to_driver=False)


def test_environment_of_the_program_is_inherited() -> None:
    def look() -> tuple[str, str]:
        return os.environ.get("MODE", ""), os.environ.get("SPEED", "")

    @shoal.remote
    def outer() -> list[tuple[str, str]]:
        inner = shoal.remote(look)
        faster = inner.options(runtime_env={"env_vars": {"SPEED": "3"}})
        return [look(), *shoal.get([inner.remote(), faster.remote()])]

    @shoal.remote
    class Looker:
        def look(self) -> tuple[str, str]:
            return look()

    shoal.shutdown()
    shoal.init(
        num_cpus=2,
        dashboard_host="ignored",
        _node_name="ignored",
        runtime_env={"env_vars": {"MODE": "a", "SPEED": "1"}},
    )
    try:
        assert shoal.get_runtime_context().runtime_env == {"env_vars": {"MODE": "a", "SPEED": "1"}}
        assert shoal.get(outer.remote(), timeout=SOON_S) == [("a", "1"), ("a", "1"), ("a", "3")]
        own = outer.options(runtime_env={"env_vars": {"SPEED": "2"}})
        assert shoal.get(own.remote(), timeout=SOON_S) == [("a", "2"), ("a", "2"), ("a", "3")]
        assert shoal.get(Looker.remote().look.remote(), timeout=SOON_S) == ("a", "1")
    finally:
        shoal.shutdown()
        shoal.init(num_cpus=2, log_to_driver=False)


# ---------------------------------------------------------------- what the guide's "Good to know" says


def test_time_out_is_a_timeout_error() -> None:
    with pytest.raises(TimeoutError):
        shoal.get(slow_number.remote(20.0), timeout=0.01)


def test_globals_are_captured_at_the_first_call() -> None:
    seen = {"value": 1}

    @shoal.remote
    def look() -> int:
        return seen["value"]

    assert shoal.get(look.remote(), timeout=SOON_S) == 1
    seen["value"] = 2
    assert shoal.get(look.remote(), timeout=SOON_S) == 1


def test_get_gives_fresh_copies() -> None:
    ref = shoal.put([1, 2, 3])
    shoal.get(ref).append(4)
    assert shoal.get(ref) == [1, 2, 3]


def test_a_generator_held_back_for_nobody_is_cancelled(tmp_path: Path) -> None:
    @shoal.remote(_generator_backpressure_num_objects=5)
    def ticking(path: Path) -> Iterator[int]:
        try:
            for number in range(10_000):
                time.sleep(0.01)
                yield number
        finally:
            path.write_text("stopped")

    generator = ticking.remote(tmp_path / "end")
    shoal.get(next(generator), timeout=SOON_S)
    del generator
    deadline = time.monotonic() + SOON_S
    while not (tmp_path / "end").exists():
        assert time.monotonic() < deadline, "the generator goes on for nobody"
        time.sleep(0.01)


def test_a_generator_whose_process_dies_delivers_each_item_once(tmp_path: Path) -> None:
    @shoal.remote
    def dying(path: Path) -> Iterator[int]:
        for number in range(6):
            if number == 3 and not path.exists():
                path.write_text("died")
                time.sleep(0.05)  # what was yielded is on its way
                os._exit(1)
            yield number

    items = [shoal.get(ref, timeout=SOON_S) for ref in dying.remote(tmp_path / "mark")]
    assert items == [0, 1, 2, 3, 4, 5]


def test_a_call_chooses_its_concurrency_group() -> None:
    @shoal.remote(concurrency_groups={"slow": 1, "quick": 1})
    class Server:
        @shoal.method(concurrency_group="slow")
        def slow(self) -> str:
            return threading.current_thread().name

        @shoal.method(concurrency_group="quick")
        def quick(self) -> str:
            return threading.current_thread().name

    server = Server.remote()
    names = shoal.get(
        [server.slow.remote(), server.quick.remote(), server.quick.options(concurrency_group="slow").remote()],
        timeout=SOON_S,
    )
    assert names[0] == names[2] != names[1]


def test_a_handle_by_name_does_not_keep_the_actor() -> None:
    adder = Adder.options(name="kept by nobody").remote()
    shoal.get(adder.add.remote(), timeout=SOON_S)
    by_name = shoal.get_actor("kept by nobody")
    del adder
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            shoal.get(by_name.add.remote(), timeout=SOON_S)
        except shoal.exceptions.ActorDiedError:
            break
        assert time.monotonic() < deadline, "the actor lives on by a handle from get_actor"
        time.sleep(0.02)


def test_a_detached_actor_lives_without_handles() -> None:
    Adder.options(name="detached", lifetime="detached").remote(5)
    time.sleep(0.2)
    adder = shoal.get_actor("detached")
    assert shoal.get(adder.add.remote(), timeout=SOON_S) == 6
    shoal.kill(adder)


def test_unstarted_tasks_of_a_dead_worker_cost_no_retry() -> None:
    @shoal.remote(max_retries=0)
    def quick(number: int) -> int:
        if number == 0:
            time.sleep(0.05)
            os._exit(1)
        return number

    refs = [quick.remote(number) for number in range(50)]
    with pytest.raises(shoal.exceptions.WorkerCrashedError):
        shoal.get(refs[0], timeout=SOON_S)
    assert shoal.get(refs[1:], timeout=SOON_S) == list(range(1, 50))
