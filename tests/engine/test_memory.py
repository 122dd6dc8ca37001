"""Memory: who dies when it runs out, and who has taken more than asked for; with errors that say so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, OutOfMemoryError
from shoal.node.io.memory_watch import memory_used

MB = 1 << 20
WAIT_S = 60


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=WAIT_S)


def fill(megabytes: int) -> bytearray:
    """Memory that is really there."""
    return bytearray(os.urandom(MB)) * megabytes


@shoal.remote
def take(megabytes: int, seconds: float = 0.0) -> int:
    held = fill(megabytes)
    time.sleep(seconds)
    return len(held) // MB


@shoal.remote
class Taker:
    def __init__(self) -> None:
        self.held: list[Any] = []

    def take(self, megabytes: int) -> int:
        self.held.append(fill(megabytes))
        time.sleep(1.0)
        return len(self.held)


@pytest.fixture
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=2, log_to_driver=False)
    yield
    shoal.shutdown()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node that takes its memory to be full, whatever else runs on this machine."""
    shoal.shutdown()
    monkeypatch.setenv("SHOAL_MEMORY_USAGE_THRESHOLD", "0.001")
    shoal.init(num_cpus=2, log_to_driver=False)
    yield
    shoal.shutdown()


def test_a_task_that_takes_more_than_it_asked_for(session: None) -> None:
    assert get(take.options(memory=400 * MB).remote(300, 0.5)) == 300
    with pytest.raises(OutOfMemoryError) as caught:
        get(take.options(memory=100 * MB, max_retries=1).remote(300, 100))
    text = str(caught.value)
    for part in ("take()", "had asked for 100 MB", "memory=104857600", "tried 2 times"):
        assert part in text, text


def test_memory_in_small_amounts_is_no_trap(session: None) -> None:
    assert get([take.options(memory=1000 + i).remote(20, 0.2) for i in range(3)]) == [20] * 3


def test_an_actor_that_takes_more_than_it_asked_for(session: None) -> None:
    taker = Taker.options(memory=200 * MB).remote()
    assert get(taker.take.remote(100)) == 1
    with pytest.raises(ActorDiedError, match="had asked for 200 MB"):
        get([taker.take.remote(200), taker.take.remote(1)])


def test_only_who_holds_much_dies(full: None, tmp_path: Path) -> None:
    share = memory_used()[1] // 100 // MB  # of the machine: less is not worth a death

    @shoal.remote(max_retries=3)
    def twice() -> str:
        with open(tmp_path / "tries", "a") as file:
            file.write("x")
        tries = len((tmp_path / "tries").read_text())
        held = fill(2 * share if tries < 3 else share // 4)
        time.sleep(100 if tries < 3 else 2.5)
        return f"{tries} {bool(held)}"

    small = take.remote(share // 4, 4.0)
    assert get(twice.remote()) == "3 True"
    assert get(small) == share // 4


def test_an_error_that_says_who_used_how_much(full: None) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        get(take.options(max_retries=0).remote(2000, 100))
    text = str(caught.value)
    for part in (
        "take()",
        "the node ran out of memory",
        "MB were in use",
        "MB of them by this worker",
        "max_retries=0",
    ):
        assert part in text, text
