"""What a new user met while the guide was written, and what the guide promises beyond its programs."""

from __future__ import annotations

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
