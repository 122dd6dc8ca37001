"""A node's daemon that stands still: what waits for it says so, and ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from tests.engine.node_counts import eventually

import shoal
from shoal.protocol.errors import RpcError
from shoal.runtime import core, own_daemon

pytestmark = pytest.mark.usefixtures("shoal_session")

ROOM_BYTES = 150_000_000  #: more than a process has at once


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The daemon's pid; it is stopped for the time of the test."""
    monkeypatch.setattr(own_daemon, "LOOK_S", 0.1)
    monkeypatch.setattr(own_daemon, "SILENT_MAX_S", 0.5)
    pid = core.current().daemon_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_put_names_the_daemon_that_it_waits_for_and_gives_up(frozen: int) -> None:
    with pytest.warns(RuntimeWarning, match=rf"pid {frozen}\).*stopped.*kill -CONT {frozen}"):
        with pytest.raises(RpcError, match=rf"pid {frozen}\).*stopped"):
            shoal.put(bytes(ROOM_BYTES))
    with pytest.raises(RpcError, match=rf"kill -CONT {frozen}"):
        core.current().call("node.stats", timeout_s=0.1)
    os.kill(frozen, signal.SIGCONT)
    # The room that it gave to nobody is given back, or the next put would not fit one day.
    budget = "budget_bytes"
    eventually(lambda: core.current().call("node.stats")["store"][budget] < ROOM_BYTES)
    assert len(shoal.get(shoal.put(bytes(ROOM_BYTES)))) == ROOM_BYTES


def test_a_daemon_that_is_slow_to_find_room_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers other things meanwhile."""
    runtime = core.current()
    monkeypatch.setattr(own_daemon, "LOOK_S", 0.02)
    monkeypatch.setattr(own_daemon, "SILENT_MAX_S", 0.0)
    asked: list[str] = []
    waiter = core.Waiter()
    answered = runtime.call

    def call(method: str, timeout_s: float = 0.0) -> object:
        asked.append(method)
        if len(asked) == 5:
            waiter.finish()
        return answered(method, timeout_s=60.0)

    monkeypatch.setattr(runtime, "call", call)
    own_daemon.wait_for_answer(runtime, waiter, None)
    assert len(asked) == 5
