"""Dead owners and their successors: single situations, then a world in which processes die at any moment.

The world's processes follow the protocol in small: they submit tasks, hand refs on, run what they adopt, and claim what they run. The twin knows
which tasks run where, and who refers to what.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.node.test_object_directory import Node, empty, stored

from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import (
    Adopted,
    AskClaims,
    Claimed,
    CodeTold,
    Escaped,
    FreeStored,
    Held,
    Lost,
    Moved,
    NotMadeTold,
    OrphansSettled,
    ProcessDied,
    ProcessJoined,
    Published,
    Released,
    RequestSweep,
    ResolveAsked,
    SendBeingRemade,
    SendRemake,
    SendResolved,
    Swept,
)
from shoal.protocol.lineage_pattern import fill
from shoal.protocol.messages import Failed

A, B, C, D = (letter * 16 for letter in (b"a", b"b", b"c", b"d"))
RESULT, PUT = b"\0\0\0\1", b"\x80\0\0\1"


def oid(task: int, index: bytes = RESULT) -> bytes:
    return task.to_bytes(16, "big") + index


X, Y, Z = oid(1), oid(2), oid(3)


def specs(node: Node) -> dict[str, int]:
    counts = node.directory.statistics()
    return {name: counts[name] for name in ("specs", "ghosts", "orphans", "kept")}


NOTHING = {"specs": 0, "ghosts": 0, "orphans": 0, "kept": 0}


def test_what_nobody_claims_goes_to_a_driver() -> None:
    node = Node(A, B)
    node.tell(ProcessJoined(D, True), CodeTold(A, b"f", b"code"))
    node.tell(Escaped(A, [X], b"task 1", [], b"f"), Held(B, [X]), ResolveAsked(B, [X]))
    [adopted] = node.tell(ProcessDied(A, "killed"))
    assert (adopted.process, adopted.oids, adopted.begun, adopted.code) == (D, [X], False, b"code")
    assert node.tell(Published(D, X, b"value")) == [SendResolved(B, X, b"value")]
    assert node.tell(Released(D, [X]), Released(B, [X])) == [] and node.settle() == []
    assert empty(node) and specs(node) == NOTHING


def test_without_a_driver_a_holder_runs_it() -> None:
    node = Node(C, A, B)
    node.tell(Escaped(A, [X], b"task 1"), Held(B, [X]))
    [adopted] = node.tell(ProcessDied(A, "killed"))
    assert adopted.process == B


def test_the_workers_are_asked_first() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [X], b"task 1"), Escaped(A, [Y], b"task 2"), Held(B, [X, Y]), ResolveAsked(B, [X]))
    assert node.tell(ProcessDied(A, "killed", [B, C])) == [AskClaims(B, A), AskClaims(C, A)]
    assert node.tell(Claimed(C, A, [X[:16]])) == [], "one has not answered"
    [adopted] = node.tell(Claimed(B, A, []))
    assert adopted.oids == [Y] and not adopted.begun
    assert node.directory.owner_of(X) == C and node.directory.owes(C)
    assert node.tell(Published(C, X, b"value")) == [SendResolved(B, X, b"value")]


def test_a_worker_that_dies_before_it_answers_may_have_begun() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [X], b"task 1"), Held(B, [X]), ProcessDied(A, "killed", [C]))
    [adopted] = node.tell(ProcessDied(C, "killed"))
    assert adopted.process == B and adopted.begun


def test_a_worker_that_dies_after_it_has_claimed_had_begun() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [X], b"task 1"), Held(B, [X]), ProcessDied(A, "killed", [C]), Claimed(C, A, [X[:16]]))
    [adopted] = node.tell(ProcessDied(C, "killed"))
    assert adopted.process == B and adopted.begun


def test_what_had_ended_is_published_and_not_run() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [X], b"task 1"), Held(B, [X]), ProcessDied(A, "killed", [C]))
    node.tell(Published(C, X, b"value"))
    assert node.tell(Claimed(C, A, [])) == []
    assert node.tell(ResolveAsked(B, [X])) == [SendResolved(B, X, b"value")]


def test_what_a_dead_owner_had_told_may_be_told_again() -> None:
    """A worker tells what its submitter may not have read; that had read it, told it, and died."""
    node = Node(A, B, C)
    node.tell(Escaped(A, [X], b"task 1"), Held(B, [X]), Published(A, X, b"value"), ProcessDied(A, "killed", [C]))
    assert node.tell(Published(C, X, b"value"), Claimed(C, A, [])) == []
    assert node.tell(ResolveAsked(B, [X])) == [SendResolved(B, X, b"value")]
    assert node.tell(Released(B, [X])) == [] and node.settle() == []
    assert empty(node) and specs(node) == NOTHING


def test_a_runner_that_dies_has_a_successor_too() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [X], b"task 1"), Held(B, [X]), Held(C, [X]))
    [first] = node.tell(ProcessDied(A, "killed"))
    assert first.process == B
    [second] = node.tell(ProcessDied(B, "killed"))
    assert second.process == C and second.oids == [X]


def test_several_results_of_a_task_are_made_by_one_run() -> None:
    node = Node(A, B)
    one, two = oid(1), oid(1, b"\0\0\0\2")
    node.tell(Escaped(A, [one], b"task 1"), Escaped(A, [two], b"task 1"), Held(B, [one, two]))
    [adopted] = node.tell(ProcessDied(A, "killed"))
    assert adopted.oids == [one, two]


def test_what_is_needed_is_held_while_it_is_asked_who_runs() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [Y]), Published(A, Y, stored(Y)), Escaped(A, [X], b"task 1", [Y]), Held(B, [X]))
    node.tell(ProcessDied(A, "killed", [C]))
    assert node.settle() == [], "the input is not freed"
    [adopted] = node.tell(Claimed(C, A, []))
    assert adopted.needs == [Y]
    node.tell(Published(B, X, b"value"), Released(B, [Y]))
    assert node.settle() == [FreeStored(Y)]


def test_a_freed_input_is_made_anew() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [Y], b"task 2"), Published(A, Y, stored(Y)))
    node.tell(Escaped(A, [X], b"task 1", [Y]), Published(A, X, stored(X)), Held(B, [X]), Released(A, [Y]))
    assert node.settle() == [FreeStored(Y)]
    assert specs(node)["ghosts"] == 1
    node.tell(ProcessDied(A, "killed"), Moved(X, None), ResolveAsked(B, [X]))
    first, second, told = node.tell(Lost(X, "its file is gone"))
    assert {tuple(first.oids), tuple(second.oids)} == {(X,), (Y,)} and first.process == second.process == B
    assert told == SendBeingRemade(B, X)


def test_a_freed_input_that_was_inline_is_still_known() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [Y], b"task 2"), Published(A, Y, b"small"))
    node.tell(Escaped(A, [X], b"task 1", [Y]), Published(A, X, stored(X)), Held(B, [X]), Released(A, [Y]))
    node.settle()
    node.tell(ProcessDied(A, "killed"), Moved(X, None), ResolveAsked(B, [X]))
    adopted = node.tell(Lost(X, "its file is gone"))[0]
    assert adopted.oids == [X] and node.tell(ResolveAsked(B, [Y])) == [SendResolved(B, Y, b"small")]


def test_ghosts_go_with_what_needed_them() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [Z], b"task 3"), Published(A, Z, stored(Z)))
    node.tell(Escaped(A, [Y], b"task 2", [Z]), Published(A, Y, stored(Y)))
    node.tell(Escaped(A, [X], b"task 1", [Y]), Published(A, X, stored(X)), Released(A, [Y, Z]))
    node.settle()
    assert specs(node) == {"specs": 3, "ghosts": 2, "orphans": 0, "kept": 0}
    node.tell(Released(A, [X]))
    node.settle()
    assert empty(node) and specs(node) == NOTHING


def test_a_small_value_needs_no_spec() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X], b"task 1", [Y]), Published(A, X, b"small"))
    assert specs(node) == NOTHING


def test_without_a_spec_it_fails() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Held(B, [X]), ResolveAsked(B, [X]))
    [answer] = node.tell(ProcessDied(A, "SIGKILL"))
    assert answer.value.error.startswith(b"OwnerDiedError") and b"SIGKILL" in answer.value.error


def test_nobody_adopts_from_a_live_owner() -> None:
    node = Node(A, B)
    node.tell(
        Escaped(A, [X], b"task 1"), Published(A, X, stored(X)), Held(B, [X]), Moved(X, None), ResolveAsked(B, [X])
    )
    ask, _ = node.tell(Lost(X, "its file is gone"))
    assert isinstance(ask, SendRemake) and ask.process == A


def test_an_owner_that_has_let_go_runs_it_all_the_same() -> None:
    node = Node(A, B)
    node.tell(ProcessJoined(D, True))
    node.tell(Escaped(A, [X], b"task 1"), Published(A, X, stored(X)), Held(B, [X]), Released(A, [X]))
    node.tell(Moved(X, None), ResolveAsked(B, [X]))
    adopted = node.tell(Lost(X, "its file is gone"))[0]
    assert isinstance(adopted, Adopted) and adopted.process == A


def test_a_put_is_made_by_running_its_task() -> None:
    node = Node(A, B)
    put = oid(5, PUT)
    node.tell(Escaped(A, [put], b"task 9"), Published(A, put, stored(put)), Held(B, [put]), Moved(put, None))
    node.tell(ResolveAsked(B, [put]))
    adopted = node.tell(Lost(put, "its file is gone"))[0]
    assert isinstance(adopted, Adopted) and adopted.process == A and adopted.oids == [put]
    # The worker of the re-run puts it; that its runner has seen the task end says nothing of what stands in the worker's socket.
    node.tell(NotMadeTold(A, [put], Failed(b"not put")))
    node.tell(ProcessJoined(C), Escaped(C, [put]))
    assert node.tell(Published(C, put, stored(put, 2))) == [SendResolved(B, put, stored(put, 2))]
    assert node.settle() == []


def test_a_put_that_is_not_put_again_fails_after_a_sweep() -> None:
    node = Node(A, B)
    put = oid(5, PUT)
    node.tell(Escaped(A, [put], b"task 9"), Published(A, put, stored(put)), Held(B, [put]), Moved(put, None))
    node.tell(ResolveAsked(B, [put]), Lost(put, "its file is gone"))
    assert node.tell(NotMadeTold(A, [put], Failed(b"not put"))) == []
    assert node.settle() == [SendResolved(B, put, Failed(b"not put"))]


def test_code_is_kept_while_somebody_may_name_it() -> None:
    node = Node(A, B)
    node.tell(
        CodeTold(A, b"f", b"code"), Escaped(A, [X], b"task 1", [], b"f"), Published(A, X, stored(X)), Held(B, [X])
    )
    node.tell(ProcessDied(A, "killed"))
    assert node.directory.statistics()["codes"] == 1
    node.tell(Released(B, [X]))
    node.settle()
    assert node.directory.statistics()["codes"] == 0


def test_a_chain_longer_than_the_stack() -> None:
    node = Node(A, B)
    depth = 20_000
    for task in range(1, depth):
        node.tell(Escaped(A, [oid(task)], b"task %d" % task, [oid(task - 1)] if task > 1 else []))
    node.tell(Held(B, [oid(depth - 1)]))
    adopted = node.tell(ProcessDied(A, "killed"))
    assert len(adopted) == depth - 1 and all(each.process == B for each in adopted)


# ---------------------------------------------------------------- a world in which owners die


class World:
    """Processes, their sockets to the daemon (queues), and the directory."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.directory = ObjectDirectory(lambda error: f"{type(error).__name__}: {error}".encode())
        self.names = [bytes([65 + number]) * 16 for number in range(5)]
        self.live = list(self.names)
        self.out: dict[bytes, list[Any]] = {name: [] for name in self.names}
        self.holds: dict[bytes, dict[bytes, int]] = {name: {} for name in self.names}
        self.sweeps: list[int] = []
        self.needs: dict[bytes, list[bytes]] = {}
        #: tasks that run: oid -> (submitter, executor); without an executor they wait
        self.tasks: dict[bytes, list[Any]] = {}
        self.values: dict[bytes, Any] = {}
        self.runs: dict[bytes, int] = {}
        self.wanted: dict[bytes, set[bytes]] = {name: set() for name in self.names}
        self.answers: dict[tuple[bytes, bytes], Any] = {}
        self.settled: set[bytes] = set()
        #: tasks that have ended, and whose replies may not have been read: executor -> submitter -> oids
        self.unread: dict[bytes, dict[bytes, list[bytes]]] = {name: {} for name in self.names}
        self.claimed: set[bytes] = set()  #: whoever runs these holds nothing for them
        self.made = 0
        for name in self.names:
            self.perform(ProcessJoined(name, name == self.names[0]))

    def perform(self, event: Any) -> None:
        for effect in self.directory.handle(event, 0.0):
            kind = type(effect)
            if kind is RequestSweep:
                self.sweeps.append(effect.token)
            elif kind is SendResolved:
                self.answers[(effect.process, effect.oid)] = effect.value
            elif kind is Adopted:
                self.adopt(effect)
            elif kind is AskClaims and effect.worker in self.live:
                mine = [
                    o[:16]
                    for o, (submitter, executor) in self.tasks.items()
                    if executor == effect.worker and submitter == effect.process
                ]
                for told in self.unread[effect.worker].pop(effect.process, ()):
                    self.out[effect.worker].append(Published(effect.worker, told, self.values[told]))
                self.out[effect.worker].append(Claimed(effect.worker, effect.process, mine))
                for o in [o for o in self.tasks if o[:16] in mine]:
                    self.tasks[o][0] = effect.worker
                    self.claimed.add(o)
            elif kind is OrphansSettled:
                self.settled.add(effect.process)

    def hold(self, name: bytes, object_id: bytes, count: int) -> None:
        holds = self.holds[name]
        holds[object_id] = holds.get(object_id, 0) + count
        if not holds[object_id]:
            del holds[object_id]

    def adopt(self, effect: Adopted) -> None:
        if effect.process not in self.live:
            return  # it dies with the message unread
        [made] = effect.oids
        assert made not in self.tasks, "a task is in one hand at a time"
        self.tasks[made] = [effect.process, None]
        self.claimed.discard(made)
        for held in [made, *effect.needs]:
            self.hold(effect.process, held, 1)

    # -------- what processes do

    def submit(self) -> None:
        owner = self.dice.choice(self.live)
        self.made += 1
        made = oid(self.made)
        held = list(self.holds[owner])
        self.needs[made] = self.dice.sample(held, min(len(held), self.dice.randrange(3)))
        self.tasks[made] = [owner, None]
        self.runs[made] = 0
        self.out[owner].append(Escaped(owner, [made], b"task %d" % self.made, self.needs[made]))
        self.hold(owner, made, 1)
        for need in self.needs[made]:  # until the task has ended
            self.out[owner].append(Held(owner, [need]))
            self.hold(owner, need, 1)

    def hand_on(self) -> None:
        giver, taker = self.dice.choice(self.live), self.dice.choice(self.live)
        if self.holds[giver]:
            given = self.dice.choice(list(self.holds[giver]))
            self.out[giver].append(Held(giver, [given], taker))
            self.hold(taker, given, 1)

    def used(self, name: bytes, object_id: bytes) -> int:
        """How many of a process's holds are the tasks', not the program's."""
        mine = [task for task, (submitter, _) in self.tasks.items() if submitter == name and task not in self.claimed]
        return sum(object_id in self.needs[task] for task in mine) + (object_id in mine)

    def drop(self) -> None:
        name = self.dice.choice(self.live)
        spare = [each for each, count in self.holds[name].items() if count > self.used(name, each)]
        if spare:
            given = self.dice.choice(spare)
            self.out[name].append(Released(name, [given]))
            self.hold(name, given, -1)

    def work(self) -> None:
        ready = [task for task, (s, _) in self.tasks.items() if s in self.live]
        if not ready:
            return
        task = self.dice.choice(ready)
        submitter, executor = self.tasks[task]
        if executor is None:
            if all(need in self.values for need in self.needs[task]):
                self.tasks[task][1] = self.dice.choice(self.live)
                self.runs[task] += 1
            return
        if executor not in self.live:
            self.tasks[task][1] = None  # a retry
            return
        del self.tasks[task]
        self.values[task] = b"v" if self.dice.random() < 0.5 else stored(task)
        self.unread[executor].setdefault(submitter, []).append(task)
        self.out[submitter].append(Published(submitter, task, self.values[task]))
        for need in self.needs[task] if task not in self.claimed else ():
            self.out[submitter].append(Released(submitter, [need]))
            self.hold(submitter, need, -1)

    def ask(self) -> None:
        name = self.dice.choice(self.live)
        if self.holds[name]:
            wanted = self.dice.choice(list(self.holds[name]))
            self.wanted[name].add(wanted)
            self.out[name].append(ResolveAsked(name, [wanted]))

    def read(self) -> None:
        name = self.dice.choice(self.names)
        if self.out[name]:
            self.perform(self.out[name].pop(0))

    def sweep(self) -> None:
        if self.sweeps:
            token = self.sweeps.pop()
            self.drain()
            self.perform(Swept(token))

    def drain(self) -> None:
        while any(self.out[name] for name in self.live):
            for name in self.live:
                while self.out[name]:
                    self.perform(self.out[name].pop(0))

    def die(self) -> None:
        if len(self.live) < 2:
            return
        name = self.dice.choice(self.live[1:])
        while self.out[name]:  # the daemon reads a dead process's socket to the end
            self.perform(self.out[name].pop(0))
        self.live.remove(name)
        self.holds[name] = {}
        executors = sorted(
            {e for s, e in self.tasks.values() if s == name and e in self.live}
            | {e for e in self.live if name in self.unread[e]}
        )
        for task in [task for task, (s, e) in self.tasks.items() if s == name and e not in executors]:
            del self.tasks[task]
        self.perform(ProcessDied(name, "killed", executors))
        for task in [task for task, (s, _) in self.tasks.items() if s not in self.live]:
            del self.tasks[task]  # those whose claim is on its way stand there under the worker's name

    def finish(self) -> None:
        for _ in range(3000):
            self.work()
            self.read()
            if not self.dice.randrange(5):
                self.sweep()
        self.drain()


@pytest.mark.parametrize("seed", range(80))
def test_every_ref_gets_its_value_whoever_dies(seed: int) -> None:
    world = World(seed)
    steps = [
        world.submit,
        world.hand_on,
        world.drop,
        world.work,
        world.work,
        world.ask,
        world.read,
        world.read,
        world.sweep,
    ]
    for _ in range(250):
        world.dice.choice(steps)()
        if world.dice.random() < 0.02:
            world.die()
    world.finish()
    for name in world.live:
        for wanted in world.wanted[name]:
            if wanted in world.holds[name]:
                answer = world.answers.get((name, wanted))
                assert answer is not None and type(answer) is not Failed, f"{wanted.hex()} {answer}"
    for name in world.live:
        for held, count in list(world.holds[name].items()):
            world.out[name].extend([Released(name, [held])] * count)
    world.drain()
    for _ in range(20):
        world.sweep()
    counts = world.directory.statistics()
    left = {each: counts[each] for each in ("objects", "holds", "candidates", "specs", "ghosts", "orphans", "kept")}
    assert not any(left.values()), left


def test_what_was_told_of_several_tasks_at_once_is_handed_over_task_by_task() -> None:
    node = Node(A, B)
    pattern = fill(b"beforebetweenafter", (6, 13), X[:16], b"x")
    node.tell(
        Escaped(A, [X, Y], b"beforebetweenafter", [], b"", False, [b"x", b"y"], (6, 13)),
        Held(B, [X, Y]),
        ResolveAsked(B, [X, Y]),
    )
    adopted = node.tell(ProcessDied(A, "killed"))
    assert pattern == b"before" + X[:16] + b"between\xc4\x01xafter"
    assert [(each.oids, each.lineage) for each in adopted] == [
        ([X], pattern),
        ([Y], b"before" + Y[:16] + b"between\xc4\x01yafter"),
    ]
    node.tell(Published(B, X, b"value"), Published(B, Y, b"value"), Released(B, [X, Y, X, Y]))
    assert node.settle() == [] and empty(node) and specs(node) == NOTHING
