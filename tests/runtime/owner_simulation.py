"""The simulated node with the real object directory in its daemon: tasks hand on refs to tasks of their own, and their workers are killed.

A *giver* submits a chain of children, waits for none, and returns their refs. The driver wants all their values. Whoever the giver's worker is, it
may die between any two of its writes: `fuse` counts them. Then the directory has the children finished, or run by a successor.

What must be true: every value comes; no child runs while another run of it goes on in a worker that lives; in the end the directory is empty.
"""

from __future__ import annotations

from typing import Any

from tests.runtime.plans import Plan
from tests.runtime.played_machine import FakeSocket, Killed
from tests.runtime.simulation import Process, Worker, World

from shoal import serialization
from shoal.node import object_events as events
from shoal.node.handed_refs import as_caller
from shoal.node.object_directory import ObjectDirectory
from shoal.protocol import messages
from shoal.runtime import core, objects

NODE = b"n" * 16
SWEEP_EVERY = 40  #: steps


class DroppedRefs:
    """In the place of the finalizers' list, which belongs to a process: these runtimes share one."""

    def __init__(self, world: OwnerWorld) -> None:
        self._world = world
        self.entries: list[Any] = []

    def append(self, entry: Any) -> None:
        self.entries.append(entry)

    def popleft(self) -> Any:
        raise IndexError

    def clear(self) -> None:
        pass  # the table of a new process begins without; here the others' are in it

    def __bool__(self) -> bool:
        return False

    def count_down(self) -> None:
        """Each entry by the runtime that knows it, or what is inside; what nobody else knows of nobody counts."""
        entries, self.entries = self.entries, []
        for entry in entries:
            nested = entry.shared.nested if entry.shared is not None else None
            shown = nested[0] if nested else entry
            for process in [*self._world.drivers, *self._world.workers]:
                if not process.dead and process.runtime.objects.table.get(shown.oid) is shown:
                    with process.reactor.lock:
                        process.runtime.objects.unuse([entry])


class OwnerWorld(World):
    """See the module's page."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.directory = ObjectDirectory(serialization.dumps_error, NODE)
        self.dropped = DroppedRefs(self)
        self.sweeps: list[int] = []
        #: writes until the worker dies: worker -> how many are left
        self.fuses: dict[Process, int] = {}
        #: what runs: TaskID -> workers
        self.runs: dict[bytes, list[Worker]] = {}
        self.given: dict[int, list[Any]] = {}
        self.adoptions = 0
        self.stopped: Worker | None = None  #: it does nothing, and lives

    def __enter__(self) -> OwnerWorld:
        super().__enter__()
        self._put(core, "dropped", self.dropped)
        self._put(objects, "dropped", self.dropped)
        self._put(FakeSocket, "send", _fused(FakeSocket.send))
        self._put(core, "_current", self.drivers[0].runtime)
        for driver in self.drivers:
            self._join(driver, True)
        return self

    def _put(self, target: Any, name: str, value: Any) -> None:
        self._patched.append((target, name, getattr(target, name)))
        setattr(target, name, value)

    def _join(self, process: Process, is_driver: bool) -> None:
        process.runtime.node_id = NODE
        process.runtime.objects.live_on(NODE)
        self.tell(events.ProcessJoined(process.worker_id, is_driver))

    def spawn(self) -> Worker:
        fresh = super().spawn()
        self._join(fresh, False)
        return fresh

    # ------------------------------------------------------------ the directory's shell

    def tell(self, event: Any) -> None:
        for effect in self.directory.handle(event, 0.0):
            kind = type(effect)
            if kind is events.SendResolved:
                self._send(effect.process, messages.Resolved(effect.oid, effect.value))
            elif kind is events.Adopted:
                self.adoptions += 1
                adopt = messages.Adopt(
                    effect.oids, effect.reason, effect.begun, effect.lineage, effect.needs, effect.code
                )
                self._send(effect.process, adopt)
            elif kind is events.AskClaims:
                self._send(effect.worker, messages.SubmitterDied(effect.process))
            elif kind is events.SendRemake:
                self._send(effect.process, messages.Remake(effect.oid, effect.reason, effect.held))
            elif kind is events.SendBeingRemade:
                self._send(effect.process, messages.BeingRemade(effect.oid))
            elif kind is events.RequestSweep:
                self.sweeps.append(effect.token)

    def _send(self, worker_id: bytes, message: Any) -> None:
        process = self.by_id[worker_id]
        if not process.buried:
            process.from_daemon(message)

    def _received(self, process: Process, message: Any) -> None:
        kind, me = type(message), process.worker_id
        if kind is messages.Escape:
            self.tell(
                events.Escaped(
                    me,
                    message.oids,
                    message.lineage,
                    message.needs,
                    message.function_id,
                    message.freed,
                    message.arguments,
                    message.cuts,
                )
            )
        elif kind is messages.Publish:
            self.tell(events.Published(me, message.oid, message.value))
        elif kind is messages.Hold:
            self.tell(events.Held(me, message.oids, message.holder, message.home, message.in_call))
        elif kind is messages.Release:
            self.tell(events.Released(me, message.oids, message.holder))
        elif kind is messages.Resolve:
            self.tell(events.ResolveAsked(me, message.oids, message.stale_generation, message.home, message.stale_node))
        elif kind is messages.LineageCode:
            self.tell(events.CodeTold(me, message.function_id, message.code))
        elif kind is messages.Claims:
            self.tell(events.Claimed(me, message.process, message.task_ids, False, message.refs))
        elif kind is messages.NotMade:
            self.tell(events.NotMadeTold(me, message.oids, message.error))
        elif kind is messages.Call:
            assert message.method == "node.recorded", "nothing else is asked for here"
            answer = self.directory.recorded(message.body["oids"])
            if answer["known"]:
                self.tell(events.Held(me, message.body["oids"]))
            process.from_daemon(messages.Answer(message.request, answer))
        elif kind is messages.RefsReceived:
            self.tell(
                events.RefsReceived(
                    me, as_caller(message.giver) if message.in_calls else message.giver, message.count, message.last
                )
            )
        else:
            super()._received(process, message)

    def sweep(self) -> None:
        """All sockets are seen empty."""
        sweeps, self.sweeps = self.sweeps, []
        if sweeps:
            for process in [*self.drivers, *[each for each in self.workers if not each.buried]]:
                self.read(process)
            self.tell(events.Swept(sweeps[-1]))

    def bury(self, dead: Worker) -> None:
        executors = [each.worker_id for each in self.workers if not each.buried and dead in each.subscribers]
        super().bury(dead)
        executors = [each for each in executors if each != dead.worker_id]
        self.tell(events.ProcessDied(dead.worker_id, f"worker {dead.number} was killed", executors))

    # ------------------------------------------------------------ what runs

    def note_start(self, plan: Plan, process: Worker, context: Any) -> None:
        if plan.owner in self.drivers:
            super().note_start(plan, process, context)
            if plan.fuses:
                self.fuses[process] = plan.fuses.pop()
            return
        if process.dead:
            raise Killed
        others = [each for each in self.runs.get(context.task_id, ()) if not each.dead and _runs(each, context.task_id)]
        assert not others or others == [process], f"a child of number {plan.number} runs twice at once"
        self.runs.setdefault(context.task_id, []).append(process)
        plan.started.append((context.attempt, process.number))

    def _told(self, plan: Plan) -> None:
        if plan.owner in self.drivers:
            super()._told(plan)

    def collect(self) -> None:
        """The driver reads the refs that it was given, and wants their values."""
        for plan in self.plans.values():
            if plan.gives and plan.owner in self.drivers and plan.result is not None:
                self._read(plan, plan.result)
        for number, refs in list(self.given.items()):
            for child, ref in zip(self.plans[number].children, refs, strict=True):
                if self.plans[child].gives:
                    self._read(self.plans[child], ref)

    def _read(self, plan: Plan, ref: Any) -> None:
        if plan.number in self.given or ref._entry.value is None:
            return
        driver = self.drivers[0]
        refs = self.given[plan.number] = driver.runtime.load(ref._entry)
        for each in refs:
            driver.runtime.when_known(each._entry, lambda entry: None)

    # ------------------------------------------------------------ steps

    def processes(self) -> list[Process]:
        return [each for each in super().processes() if each is not self.stopped]

    def step_worker(self, each: Worker) -> None:
        if each is not self.stopped:
            super().step_worker(each)

    def random_step(self) -> None:
        super().random_step()
        self._tend()

    def calm_round(self) -> None:
        super().calm_round()
        self._tend()
        for process in self.processes():
            process.runtime.submitter.received.tell()  # at its next tick, whenever that is
            process.reactor.flush_dirty()
        self.sweep()

    def _tend(self) -> None:
        self.collect()
        self.dropped.count_down()
        if self.random.randrange(SWEEP_EVERY) == 0:
            self.sweep()

    def cancel(self, dice: Any) -> None:
        pass  # nobody who is cancelled hands on anything

    def check(self) -> None:
        pass  # `pending` counts adopted tasks too

    def finish_given(self, rounds: int = 3000) -> None:
        """The faults end: every value comes, and when the refs are gone nothing is left."""
        self.faults = False
        self.fuses.clear()
        for _ in range(rounds):
            self.calm_round()
            if all(plan.number in self.given for plan in self.plans.values() if plan.gives) and all(
                ref._entry.value is not None for refs in self.given.values() for ref in refs
            ):
                break
        else:
            raise AssertionError(f"seed {self.seed}: not everything came\n{self.where()}")
        for number, refs in self.given.items():
            for child, ref in zip(self.plans[number].children, refs, strict=True):
                assert type(ref._entry.value) is bytes, ref._entry.value
                assert self.plans[child].gives or serialization.loads(ref._entry.value) == child * 10
        self.given.clear()
        del refs, ref
        for _ in range(700):
            for plan in self.plans.values():  # one may run once more, and submit its children anew
                plan.result = None
            self.calm_round()
            counts = self.directory.statistics()
            if not counts["objects"] and not counts["specs"]:
                break
        else:
            raise AssertionError(f"seed {self.seed}: something is left: {counts}\n{self.where()}")
        assert not counts["orphans"] and not counts["kept"] and not counts["underway"], counts

    def where(self) -> str:
        lines = [f"{self.directory.statistics()}"]
        for number, refs in self.given.items():
            for child, ref in zip(self.plans[number].children, refs, strict=True):
                entry = ref._entry
                lines.append(
                    f"giver {number} child {child}: value {entry.value is not None} task {entry.task} owner "
                    f"{self.directory.owner_of(entry.oid)!r} holders {self.directory.holders(entry.oid)}"
                )
        return "\n".join(lines)


def _runs(worker: Worker, task_id: bytes) -> bool:
    running = worker.executor.running
    return running is not None and running.task_id == task_id


def _fused(send: Any) -> Any:
    def fused(self: FakeSocket, data: Any) -> int:
        world: Any = self.world
        sent: int = send(self, data)
        process = getattr(world.here, "process", None)
        if process in world.fuses and not process.dead:
            world.fuses[process] -= 1
            if world.fuses[process] <= 0:
                del world.fuses[process]
                world._killed_itself()
        return sent

    return fused
