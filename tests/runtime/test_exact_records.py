"""When the record of a call leaves an actor with exact state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol.messages import RecordCall
from shoal.runtime.exact_actor import ExactActor


@pytest.mark.parametrize("in_cluster", [False, True])
@pytest.mark.parametrize(("incarnation", "leaves"), [(1, "send"), (2, "send_now")])
def test_a_life_after_another_writes_down_what_it_does_before_it_does_it(
    incarnation: int, leaves: str, in_cluster: bool
) -> None:
    seen: list[Any] = []
    daemon: Any = SimpleNamespace(
        send=lambda message: seen.append(("send", message)),
        send_now=lambda message: seen.append(("send_now", message)),
    )
    actor: Any = object.__new__(ExactActor)
    actor.host = SimpleNamespace(incarnation=incarnation)
    actor.reactor = SimpleNamespace(await_confirmation=lambda: seen.append("confirmed later"))
    actor.in_cluster = in_cluster
    record = RecordCall(b"a" * 16, incarnation, 1, b"record")
    actor._write(daemon, record)
    assert seen == [(leaves, record), *(["confirmed later"] if in_cluster else [])]
