"""Named actors: namespaces, detached lives, handles found by name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorAlreadyExistsError, ActorDiedError, ActorUnavailableError

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


def is_named(name: str, namespace: str | None = None) -> bool:
    """Whether there is an actor of that name."""
    try:
        shoal.get_actor(name, namespace)
    except ValueError:
        return False
    return True


def until_free(name: str, namespace: str | None = None) -> bool:
    """Whether the name becomes free in bounded time."""
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline:
        if not is_named(name, namespace):
            return True
        time.sleep(0.01)
    return False


@shoal.remote
class Box:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value

    def find(self, name: str) -> Any:
        return shoal.get(shoal.get_actor(name).get.remote())

    def namespace(self) -> str:
        return shoal.get_runtime_context().namespace

    def fail(self) -> None:
        os._exit(2)

    @shoal.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2

    def items(self, count: int) -> Any:
        yield from range(count)


def test_found_by_name_everywhere() -> None:
    box = Box.options(name="everywhere").remote(1)
    assert shoal.get_actor("everywhere") == box
    assert get(shoal.get_actor("everywhere").get.remote()) == 1

    @shoal.remote
    def find() -> Any:
        return shoal.get(shoal.get_actor("everywhere").get.remote())

    assert get(find.remote()) == 1
    assert get(Box.remote().find.remote("everywhere")) == 1


def test_handle_found_by_name_knows_the_methods() -> None:
    box = Box.options(name="methods").remote(1)
    found = shoal.get_actor("methods")
    assert get(list(found.two.remote())) == [1, 2]
    assert [get(ref) for ref in found.items.remote(3)] == [0, 1, 2]
    with pytest.raises(AttributeError):
        found.absent  # noqa: B018
    with pytest.raises(AttributeError):
        found.value  # noqa: B018
    del box


def test_absent_names() -> None:
    with pytest.raises(ValueError, match="'absent'"):
        shoal.get_actor("absent")
    with pytest.raises(ValueError):
        shoal.get_actor("")


def test_a_name_is_taken_once() -> None:
    box = Box.options(name="once").remote(1)
    with pytest.raises(ActorAlreadyExistsError, match="once") as caught:
        Box.options(name="once").remote(2)
    assert isinstance(caught.value, ValueError)
    assert get(box.get.remote()) == 1
    shoal.kill(box)
    again = Box.options(name="once").remote(3)  # free as soon as it is killed
    assert get(again.get.remote()) == 3


def test_get_if_exists() -> None:
    first = Box.options(name="shared", get_if_exists=True).remote(1)
    second = Box.options(name="shared", get_if_exists=True).remote(2)
    assert first == second
    assert get(second.get.remote()) == 1
    del first
    time.sleep(0.2)
    assert get(second.get.remote()) == 1  # this handle keeps it, too


def test_get_if_exists_from_many_at_once() -> None:
    @shoal.remote(num_cpus=0)
    def make(number: int) -> tuple[str, Any]:
        box = Box.options(name="raced", get_if_exists=True, lifetime="detached").remote(number)
        return box._actor_id.hex(), shoal.get(box.get.remote())

    made = get([make.remote(number) for number in range(6)])
    assert len(set(made)) == 1
    shoal.kill(shoal.get_actor("raced"))


def test_get_if_exists_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name"):
        Box.options(get_if_exists=True).remote()


@pytest.mark.parametrize("name", ["", 5])
def test_bad_names(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        Box.options(name=name).remote()


def test_namespaces_are_apart() -> None:
    here = Box.options(name="apart").remote("here")
    there = Box.options(name="apart", namespace="elsewhere").remote("there")
    assert get(shoal.get_actor("apart").get.remote()) == "here"
    assert get(shoal.get_actor("apart", namespace="elsewhere").get.remote()) == "there"
    with pytest.raises(ValueError, match="nowhere"):
        shoal.get_actor("apart", namespace="nowhere")
    listed = shoal.util.list_named_actors(all_namespaces=True)
    assert {"name": "apart", "namespace": "elsewhere"} in listed
    assert "apart" in shoal.util.list_named_actors()
    assert get(there.namespace.remote()) == get(here.namespace.remote()) == shoal.get_runtime_context().namespace


def test_handle_found_by_name_is_weak() -> None:
    box = Box.options(name="weak").remote(1)
    found = shoal.get_actor("weak")
    assert get(found.get.remote()) == 1
    del box
    assert until_free("weak")
    with pytest.raises(ActorDiedError):
        get(found.get.remote())


def test_detached_actors_stay_without_handles() -> None:
    Box.options(name="detached", lifetime="detached").remote(5)
    time.sleep(0.3)
    found = shoal.get_actor("detached")
    assert get(found.get.remote()) == 5
    shoal.kill(found)
    assert until_free("detached")


def test_detached_actor_made_by_a_task() -> None:
    @shoal.remote
    def make() -> None:
        Box.options(name="from task", lifetime="detached").remote(6)

    get(make.remote())
    found = shoal.get_actor("from task")
    assert get(found.get.remote()) == 6
    shoal.kill(found)


def test_name_is_free_after_a_crash() -> None:
    box = Box.options(name="crashed").remote()
    with pytest.raises(ActorDiedError):
        get(box.fail.remote())
    assert until_free("crashed")


def test_name_stays_over_restarts() -> None:
    box = Box.options(name="restarted", max_restarts=1).remote(1)
    get(box.set.remote(2))
    with pytest.raises(ActorUnavailableError):
        get(box.fail.remote())
    found = shoal.get_actor("restarted")
    assert get(found.get.options(max_task_retries=-1).remote()) == 1


def test_name_is_free_after_a_failed_constructor() -> None:
    @shoal.remote
    class Fails:
        def __init__(self) -> None:
            raise ValueError("at once")

        def call(self) -> None: ...

    fails = Fails.options(name="failed").remote()
    with pytest.raises(ActorDiedError, match="at once"):
        get(fails.call.remote())
    assert until_free("failed")


def test_named_actor_with_an_argument_that_is_not_ready() -> None:
    @shoal.remote
    def later() -> int:
        time.sleep(0.2)
        return 9

    box = Box.options(name="late").remote(later.remote())
    assert get(shoal.get_actor("late").get.remote()) == 9
    del box


def test_names_from_many_threads() -> None:
    boxes: list[Any] = []
    errors: list[Exception] = []

    def make(number: int) -> None:
        try:
            boxes.append(Box.options(name=f"thread {number % 3}").remote(number))
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert (len(boxes), len(errors)) == (3, 3)


def test_prefix_of_output_is_the_actors_repr() -> None:
    program = """
import shoal
shoal.init(num_cpus=1)

@shoal.remote
class Named:
    def __init__(self, number): self.number = number
    def __repr__(self): return f"Named-{self.number}"
    def speak(self): print("from a named one")
    def fail(self): raise ValueError("of a named one")

@shoal.remote
class Plain:
    def speak(self): print("from a plain one")

named, plain = Named.remote(3), Plain.remote()
shoal.get([named.speak.remote(), plain.speak.remote()])
try:
    shoal.get(named.fail.remote())
except ValueError as error:
    print("caught", error)
shoal.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=True)
    output = done.stdout + done.stderr
    lines = output.splitlines()
    assert any(line.startswith("(Named-3 pid=") and line.endswith("from a named one") for line in lines), output
    assert any(line.startswith("(Plain pid=") and line.endswith("from a plain one") for line in lines), output
    assert "actor=Named-3" in output
