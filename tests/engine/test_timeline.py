"""What the session tells of itself: its trace, its nodes, its resources."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def session() -> Iterator[ModuleType]:
    """A session with a resource and a label of its own."""
    import shoal

    shoal.shutdown()
    shoal.init(num_cpus=2, resources={"special": 3}, labels={"zone": "a"}, object_store_memory=100 << 20)
    yield shoal
    shoal.shutdown()


def traced(session: ModuleType, name: str, count: int) -> list[dict[str, Any]]:
    """The events of tasks called `name`, once there are `count`."""
    deadline = time.monotonic() + 60
    while True:
        events = [event for event in session.timeline() if event["ph"] == "X" and event["name"] == name]
        if len(events) >= count or time.monotonic() > deadline:
            return events


def test_tasks_and_actor_calls_are_in_the_trace_at_once(session: ModuleType, tmp_path: Path) -> None:
    @session.remote
    def traced_task() -> int:
        time.sleep(0.01)
        return os.getpid()

    @session.remote(max_retries=0)
    def traced_failure() -> None:
        raise KeyError("x")

    @session.remote
    class Traced:
        def call(self) -> int:
            time.sleep(0.01)
            return os.getpid()

    begun = time.time()
    actor = Traced.remote()
    pids = session.get([traced_task.remote() for _ in range(5)], timeout=60)
    actor_pid = session.get([actor.call.remote() for _ in range(3)], timeout=60)[0]
    with pytest.raises(KeyError):
        session.get(traced_failure.remote(), timeout=60)
    trace = session.timeline()
    ended = time.time()
    tasks = [event for event in trace if event["name"] == "traced_task"]
    calls = [event for event in trace if event["name"] == "Traced.call"]
    assert len(tasks) == 5 and len(calls) == 3
    assert sorted(event["tid"] for event in tasks) == sorted(pids)
    assert {event["tid"] for event in calls} == {actor_pid}
    for event in tasks + calls:
        assert event["ph"] == "X" and event["args"]["state"] == "FINISHED"
        assert begun * 1e6 <= event["ts"] <= ended * 1e6 and 9_000 <= event["dur"] < 5e6
        assert len(bytes.fromhex(event["args"]["task_id"])) == 16
    (failure,) = [event for event in trace if event["name"] == "traced_failure"]
    assert failure["args"]["state"] == "FAILED" and failure["args"]["error"] == "KeyError"
    named = {(event["pid"], event["tid"]) for event in trace if event["ph"] == "M"}
    assert {(event["pid"], event["tid"]) for event in tasks + calls} <= named
    path = tmp_path / "trace.json"
    assert session.timeline(str(path)) is None
    written = json.loads(path.read_text())
    assert all(isinstance(event["pid"], int) and isinstance(event["tid"], int) for event in written)


def test_many_tasks_are_traced(session: ModuleType) -> None:
    @session.remote
    def quick() -> None:
        pass

    session.get([quick.remote() for _ in range(300)], timeout=60)
    assert len(traced(session, "quick", 300)) == 300


def test_a_node_has_the_fields_that_programs_know(session: ModuleType) -> None:
    (node,) = session.nodes()
    assert node["Alive"] is True and node["alive"] is True
    assert node["NodeID"] == session.get_runtime_context().get_node_id()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    assert node["Resources"] == session.cluster_resources()
    assert node["Labels"]["zone"] == "a"


def test_resources_are_free_again_when_their_holder_is_dead(session: ModuleType) -> None:
    total = session.cluster_resources()
    assert total["CPU"] == 2 and total["special"] == 3 and total["object_store_memory"] == 100 << 20
    assert total["memory"] > 0 and total["node:__internal_head__"] == 1 and total["node:127.0.0.1"] == 1
    assert all(type(amount) is float for amount in total.values())

    @session.remote(resources={"special": 3}, num_cpus=1.5)
    class Holder:
        def free(self) -> dict[str, float]:
            import shoal

            return shoal.available_resources()

    holder = Holder.remote()
    free = session.get(holder.free.remote(), timeout=60)
    assert "special" not in free and free["CPU"] <= 0.5
    session.kill(holder)
    deadline = time.monotonic() + 60
    while session.available_resources() != total:
        assert time.monotonic() < deadline, session.available_resources()
        time.sleep(0.05)

    @session.remote(num_cpus=0, resources={"node:127.0.0.1": 0.001})
    def pinned() -> int:
        return 1

    assert session.get(pinned.remote(), timeout=60) == 1
