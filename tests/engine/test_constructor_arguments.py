"""What an actor's constructor needs is there at each restart, whoever made it, and goes when the actor is dead."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from tests.engine.needy_actors import LARGE, Needy, value_of
from tests.engine.node_counts import eventually, pid_of, settled_counts, wait_for_counts

import shoal
from shoal.protocol.errors import ActorAlreadyExistsError
from shoal.runtime import core

pytestmark = pytest.mark.usefixtures("shoal_session")

SOON_S = 60.0


@shoal.remote(num_cpus=0)
class Maker:
    """Makes a detached actor, and is of no use any more."""

    def make(self, **options: Any) -> Any:
        refs = [value_of.remote(number) for number in (6, 7)]
        made = Needy.options(lifetime="detached", **options).remote(refs[0], refs[1:], LARGE)
        return shoal.get(made.all.remote()), made


def kept() -> int:
    """For how many actors the node holds arguments."""
    return int(core.current().call("node.stats")["actors"]["arguments"])


def end(actor: Any) -> None:
    """Kill an actor, and wait until its process is no more."""
    pid = pid_of(actor)
    shoal.kill(actor)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_detached_actor_restarts_when_its_maker_has_gone() -> None:
    before = settled_counts()
    maker = Maker.remote()
    values, needy = shoal.get(maker.make.remote(), timeout=SOON_S)
    assert values == [6, 7, len(LARGE)]
    end(maker)
    for _ in range(2):
        os.kill(pid_of(needy), signal.SIGKILL)
        assert shoal.get(needy.all.remote(), timeout=SOON_S) == values
    assert kept() == 1
    end(needy)
    del needy, maker
    eventually(lambda: kept() == 0)
    wait_for_counts(before)


def test_nothing_is_held_for_what_does_not_restart_or_was_not_made() -> None:
    before = settled_counts()
    maker = Maker.remote()
    _, once = shoal.get(maker.make.remote(name="once", max_restarts=0, max_task_retries=0), timeout=SOON_S)
    assert kept() == 0, "it is constructed"
    with pytest.raises(ActorAlreadyExistsError):
        Needy.options(name="once").remote(value_of.remote(1), [value_of.remote(2)], b"")
    assert kept() == 0
    last = Needy.remote(value_of.remote(1), [value_of.remote(2)], b"")
    assert shoal.get(last.all.remote(), timeout=SOON_S) == [1, 2, 0]
    assert kept() == 1
    del last  # its last handle
    eventually(lambda: kept() == 0)
    end(once)
    end(maker)
    del once, maker
    wait_for_counts(before)
