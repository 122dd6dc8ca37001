"""Arguments of constructors whose nodes die, before the actor is made and between its lives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.needy_actors import LARGE, Needy, value_of
from tests.engine.node_counts import pid_of

import shoal
from shoal.exceptions import ActorDiedError, ObjectLostError
from shoal.testing import Cluster
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SOON_S = 60.0


@shoal.remote(num_cpus=0)
def makes(place: Any) -> Any:
    """A detached actor, made by a process that goes."""
    there = NodeAffinitySchedulingStrategy(shoal.get_runtime_context().get_node_id(), soft=True)
    refs = [value_of.options(scheduling_strategy=there).remote(number) for number in (6, 7)]
    made = Needy.options(lifetime="detached", scheduling_strategy=place).remote(refs[0], refs[1:], LARGE)
    assert shoal.get(made.all.remote()) == [6, 7, len(LARGE)]
    return made


def test_what_was_lost_is_made_anew_for_constructors(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(num_cpus=2)
    one, two = (cluster.add_node(num_cpus=2) for _ in range(2))
    cluster.connect(log_to_driver=False)
    on_one, on_two = (NodeAffinitySchedulingStrategy(node.node_id, soft=True) for node in (one, two))
    there = value_of.options(scheduling_strategy=on_one)
    again, once = there.remote(1), there.options(max_retries=0).remote(2)
    lives = Needy.options(scheduling_strategy=on_two).remote(again, [there.remote(3)], b"")
    detached = shoal.get(makes.options(scheduling_strategy=on_one).remote(on_two), timeout=SOON_S)
    assert shoal.get(lives.all.remote(), timeout=SOON_S) == [1, 3, 0]
    shoal.wait([again, once], num_returns=2, fetch_local=False, timeout=SOON_S)

    cluster.remove_node(one, kill=True)
    fresh = Needy.remote(again, [again], b"")
    assert shoal.get(fresh.all.remote(), timeout=SOON_S) == [1, 1, 0]
    with pytest.raises(ActorDiedError, match="cannot be made again") as raised:
        shoal.get(Needy.remote(once, [], b"").all.remote(), timeout=SOON_S)
    assert isinstance(raised.value.cause, ObjectLostError)
    for said in (once.hex(), "made by value_of()", "max_retries"):
        assert said in str(raised.value.cause), raised.value.cause
    assert "ArgumentLost" not in str(raised.value) + str(raised.value.cause)

    os.kill(pid_of(detached), signal.SIGKILL)
    assert shoal.get(detached.all.remote(), timeout=SOON_S) == [6, 7, len(LARGE)], "its maker's node is dead"
    cluster.remove_node(two, kill=True)  # of the nodes that knew the detached actor only the head is left
    assert shoal.get(detached.all.remote(), timeout=SOON_S) == [6, 7, len(LARGE)]
    assert shoal.get(lives.all.remote(), timeout=SOON_S) == [1, 3, 0]
