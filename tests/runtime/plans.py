"""What the tasks and actors of a simulated world do: plans, drawn beforehand, and the code that acts by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.runtime.played_machine import CURRENT, Killed

from shoal import serialization
from shoal.protocol.ids import function_id_of
from shoal.protocol.messages import ActorState
from shoal.runtime import core
from shoal.runtime.objects import ObjectRef

if TYPE_CHECKING:
    from tests.runtime.simulation import Process, Worker


class Plan:
    """One task or call, as the dumb twin knows it."""

    def __init__(self, number: int, **fields: Any) -> None:
        self.number = number
        self.kind = "plain"
        self.pauses = 0
        self.outcome = "value"
        self.crash_on: frozenset[int] = frozenset()
        self.deps: list[int] = []
        self.children: list[int] = []
        self.max_retries = 0
        self.retry_exceptions = False
        self.klass = 0
        self.items = 0
        self.backpressure = -1
        self.cancelled = False
        self.gives = False  #: it returns the refs of its children, and waits for none
        self.fuses: list[int] = []  #: after so many writes of a run its worker is killed, the last number first
        self.owner: Process | None = None
        self.is_call = False
        self.result: Any = None
        self.taken: list[ObjectRef] = []
        self.told = 0
        self.started: list[tuple[int, int]] = []  #: (attempt, worker) of every execution
        self.__dict__.update(fields)


def run_script(number: int, *deps: Any) -> Any:
    """The code of every task: act as the plan says."""
    world = CURRENT[-1]
    plan = world.plans[number]
    process = world.here.process
    context = core.running_task.get()
    assert context is not None
    world.note_start(plan, process, context)
    for dep, value in zip(plan.deps, deps, strict=True):
        assert value == dep * 10, f"task {number} got {value} for the result of {dep}"
    if plan.items or plan.kind == "stream":
        return make_items(plan, process, context)
    act(plan, process, context)
    if plan.gives:
        return [world.submit(world.plans[child], process) for child in plan.children]
    if plan.kind == "multiple":
        return number * 10, number * 10 + 1, number * 10 + 2
    return number * 10


def make_items(plan: Plan, process: Worker, context: Any) -> Any:
    for index in range(plan.items):
        process.pause("code")
        yield plan.number * 100 + index
    act(plan, process, context)


def act(plan: Plan, process: Worker, context: Any) -> None:
    world = process.world
    for _ in range(plan.pauses):
        process.pause("code")
    if plan.children and not plan.gives:
        refs = [world.submit(world.plans[child], process) for child in plan.children]
        values = process.runtime.get(refs)
        assert values == [child * 10 for child in plan.children]
        for child in plan.children:
            world.plans[child].told = 1
    if context.attempt in plan.crash_on:
        process.die()
        raise Killed
    if plan.outcome == "error":
        raise ValueError(f"task {plan.number} fails")


class SimActor:
    """The actor of the simulation: `run` notes who was called in which order."""

    def run(self, number: int, *deps: Any) -> Any:
        return run_script(number, *deps)


RUN_CODE = serialization.dumps_code(run_script)[0]
RUN_ID = function_id_of(RUN_CODE)
ACTOR_CLASS_CODE = serialization.dumps_code(SimActor)[0]
ACTOR_CLASS_ID = function_id_of(ACTOR_CLASS_CODE)


class FakeActor:
    """An actor as the daemon and the GCS know it."""

    def __init__(self, number: int, restarts: int, in_order: bool) -> None:
        self.actor_id = number.to_bytes(4, "big") + b"actoractor##"
        self.restarts = restarts
        self.in_order = in_order  #: its callers keep the order also where a call waits for its arguments
        self.state = "pending"
        self.incarnation = -1
        self.worker: Worker | None = None
        self.lease_id = 0
        self.subscribers: dict[Process, None] = {}

    def message(self) -> ActorState:
        alive = self.worker if self.state == "alive" else None
        return ActorState(
            self.actor_id,
            self.state,
            self.incarnation,
            self.lease_id if alive else 0,
            alive.worker_id if alive else b"",
            alive.address if alive else "",
            alive.number if alive else 0,
            "it was killed",
        )
