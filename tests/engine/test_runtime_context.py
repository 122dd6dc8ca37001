"""`get_runtime_context()` in a driver, in tasks and in every kind of actor."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

import shoal

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


def describe() -> dict[str, Any]:
    """What the context says here."""
    context = shoal.get_runtime_context()
    return {
        "job": context.get_job_id(),
        "node": context.get_node_id(),
        "worker": context.get_worker_id(),
        "task": context.get_task_id(),
        "actor": context.get_actor_id(),
        "actor name": context.get_actor_name(),
        "task name": context.get_task_name(),
        "function name": context.get_task_function_name(),
        "resources": context.get_assigned_resources(),
        "accelerators": context.get_accelerator_ids(),
        "group": context.get_placement_group_id(),
        "environment": context.runtime_env,
        "environment string": json.loads(context.get_runtime_env_string()),
        "namespace": context.namespace,
        "reconstructed": context.was_current_actor_reconstructed,
        "cancelled": context.is_canceled(),
        "gcs": context.gcs_address,
        "labels": context.get_node_labels(),
        "session": context.get_session_name(),
        "folder": context.get_temp_dir(),
        "capture": context.should_capture_child_tasks_in_placement_group,
        "pid": os.getpid(),
        "properties": [context.job_id, context.node_id, context.task_id, context.actor_id],
        "dict": context.get(),
    }


@shoal.remote
def task() -> dict[str, Any]:
    return describe()


@shoal.remote
class Actor:
    def describe(self) -> dict[str, Any]:
        return describe()

    def me(self) -> Any:
        return shoal.get_runtime_context().current_actor

    def call_me_back(self, handles: list[Any]) -> Any:
        return handles[0].value.remote(shoal.get_runtime_context().current_actor)

    def value(self) -> int:
        return 1


@shoal.remote
class AsyncActor:
    async def describe(self) -> dict[str, Any]:
        return describe()


def is_hex(text: Any, digits: int) -> bool:
    """Whether it is an id of that many hexadecimal digits."""
    return isinstance(text, str) and len(text) == digits and int(text, 16) >= 0


def test_driver() -> None:
    here = describe()
    assert is_hex(here["job"], 8) and is_hex(here["node"], 32) and is_hex(here["worker"], 32)
    assert here["task"] is None and here["actor"] is None and here["actor name"] is None and here["task name"] is None
    assert here["resources"] == {} and here["accelerators"] == {"GPU": []}
    assert here["reconstructed"] is False and here["cancelled"] is False
    assert here["namespace"]
    with pytest.raises(RuntimeError, match="actor"):
        shoal.get_runtime_context().current_actor  # noqa: B018


def test_task() -> None:
    here, there = describe(), get(task.options(num_cpus=0.5, name="of mine").remote())
    assert there["job"] == here["job"] and there["node"] == here["node"] and there["namespace"] == here["namespace"]
    assert there["worker"] != here["worker"] and there["gcs"] == here["gcs"] and there["session"] == here["session"]
    assert is_hex(there["task"], 32) and there["actor"] is None
    assert there["task name"] == "of mine"
    assert there["function name"].endswith("task")
    assert there["resources"] == {"CPU": 0.5}
    assert there["properties"] == [there["job"], there["node"], there["task"], None]
    assert there["dict"]["task_id"] == there["task"]


def test_each_task_has_its_own_id() -> None:
    ref = task.remote()
    there = get(ref)
    assert ref.task_id().hex() == there["task"]
    assert there["task"] != get(task.remote())["task"]


@pytest.mark.parametrize(
    "kind", [Actor, AsyncActor, Actor.options(max_concurrency=2)], ids=["plain", "loop", "threads"]
)
def test_actor(kind: Any) -> None:
    actor = kind.options(name="contextual", num_cpus=0.25).remote()
    there = get(actor.describe.remote())
    assert there["actor"] == actor._actor_id.hex()
    assert there["actor name"] == "contextual"
    assert there["task name"].endswith("describe")
    assert there["function name"].endswith("Actor.describe")
    assert there["resources"] == {"CPU": 0.25}
    assert there["reconstructed"] is False
    assert there["job"] == describe()["job"]
    assert there["namespace"] == describe()["namespace"]
    assert get(actor.describe.remote())["task"] != there["task"]
    shoal.kill(actor)


def test_current_actor_is_a_handle_that_keeps_the_actor() -> None:
    actor = Actor.remote()
    me = get(actor.me.remote())
    assert me == actor
    del actor
    assert get(me.value.remote()) == 1


def test_constructor_has_a_context() -> None:
    @shoal.remote
    class Curious:
        def __init__(self) -> None:
            self.seen = describe()

        def get(self) -> dict[str, Any]:
            return self.seen

    curious = Curious.remote()
    seen = get(curious.get.remote())
    assert seen["actor"] == curious._actor_id.hex()
    assert seen["task name"] == "Curious.__init__"


def test_threads_of_a_task_have_no_task() -> None:
    @shoal.remote
    def threaded() -> Any:
        import threading

        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(shoal.get_runtime_context().get_node_id()))
        thread.start()
        thread.join()
        return seen[0]

    assert get(threaded.remote()) == describe()["node"]
