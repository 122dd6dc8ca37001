"""What a new user met while the guide was written, and what the guide promises beyond its programs."""

from __future__ import annotations

import os
import time

import pytest

import shoal

pytestmark = pytest.mark.usefixtures("shoal_session")

SOON_S = 20.0


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
    with pytest.raises(shoal.exceptions.GetTimeoutError) as caught:
        shoal.get(waiting.add.remote(), timeout=0.3)
    assert "asks for 2 CPU" in str(caught.value) and "held by 1 x actor Adder" in str(caught.value)
    shoal.kill(holder)
    assert shoal.get(waiting.add.remote(), timeout=SOON_S) >= 1


def test_init_tells_of_options_that_it_does_not_have() -> None:
    shoal.shutdown()
    try:
        with pytest.raises(TypeError, match="num_cpu'; did you mean 'num_cpus'"):
            shoal.init(num_cpu=2)
        with pytest.raises(ValueError, match="runtime_env has the key 'pip'"):
            shoal.init(runtime_env={"pip": ["numpy"]})
        with pytest.raises(ConnectionError, match="nodes of this machine only"):
            shoal.init(address="ray://127.0.0.1:10001")
        with pytest.raises(ConnectionError, match="finds no running node"):
            shoal.init(address="auto")
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
        num_cpus=2, dashboard_host="ignored", _temp_dir="ignored", runtime_env={"env_vars": {"MODE": "a", "SPEED": "1"}}
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
