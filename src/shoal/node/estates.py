"""What dead processes of other nodes have left with this node's workers: tasks that run on, and results that nobody was there to take.

Purpose: nothing runs twice because its owner's node died, or its owner, which lived on another node than the task.

Design: a pure part of the object directory; the other side of `claims`. A result belongs to the *home* of its object: the node of the dead owner, or
whoever has inherited from that. Here it waits until that node takes it.

    ForeignProcessDied     an *estate*: the workers that have tasks of it are asked (AskClaims), as for a process of this node
    Claimed                a *claim* for each task that runs on, or is queued at an actor
    Published(of=...)      the claim's value: for who has taken it, or kept for who will
    ClaimsAsked            answered when all workers have answered; for a dead node, when this one has heard of its death, too
    ClaimsTaken            results that an object's home wants: they are told when they are there (TellClaimMade), with the refs that are inside
    the worker dies        what was taken and is not there is told to be lost
    the taker dies         its claims are there for its heirs
    EstateExpired          nobody came: values are let go. What runs stays claimed, for who comes late; its value is let go unless it is taken

What it does not do: decide what becomes of what nobody claims (`claims`, `succession`), or keep what lies in the store for a dead home (the shell).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.object_events import (
    AskClaims,
    Claimed,
    ClaimMade,
    ClaimsAsked,
    ClaimsTaken,
    Effect,
    EstateExpired,
    EstatesComplete,
    EstateSettled,
    ExpireLater,
    ForeignProcessDied,
    FreeStored,
    Published,
    TellClaimMade,
    TellClaims,
)
from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.messages import Stored, Value
from shoal.protocol.values import refs_inside

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory


class Estate:
    """What is known of one dead process of another node."""

    __slots__ = ("begun", "node", "waiting")

    def __init__(self, node: bytes, waiting: dict[bytes, None]) -> None:
        self.node = node
        #: workers that have not said yet what they have of it
        self.waiting = waiting
        #: a worker died: what nobody claims may have begun
        self.begun = False


class Claim:
    """One task of a dead process."""

    __slots__ = ("expired", "home", "homes", "process", "values", "wanted", "worker")

    def __init__(self, process: bytes, home: bytes, worker: bytes) -> None:
        self.process = process
        #: the node of the process
        self.home = home
        #: where single results belong that others have taken since
        self.homes: dict[bytes, bytes] = {}
        #: who runs it; empty when it has ended
        self.worker = worker
        #: results that are there, and hold the refs that are inside
        self.values: dict[bytes, Value] = {}
        #: results that were taken and are not there yet -> by which node
        self.wanted: dict[bytes, bytes] = {}
        #: nobody came in time
        self.expired = False

    def belongs_to(self, of: bytes) -> bool:
        """Whether a process has left it, or results belong to a node."""
        return of in (self.process, self.home) or of in self.homes.values()


class Estates:
    """See the module's page."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        #: dead processes of other nodes
        self.estates: dict[bytes, Estate] = {}
        #: by task
        self.claims: dict[bytes, Claim] = {}
        #: dead nodes of whose processes all deaths were told
        self._complete: dict[bytes, None] = {}
        #: not answered yet: (who asks, of whom)
        self._questions: list[ClaimsAsked] = []

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        waiting = sum(len(estate.waiting) for estate in self.estates.values())
        return {
            "estates": len(self.estates),
            "estates_asked": waiting,
            "claims": len(self.claims),
            "claims_asked": len(self._questions),
        }

    def keeps(self, oid: bytes) -> bool:
        """Whether a result of a dead process's task lies here for who will take it."""
        claim = self.claims.get(oid[:TASK_ID_BYTES])
        return claim is not None and oid in claim.values

    def claimant_of(self, oid: bytes) -> bytes:
        """Who runs the task that makes a result; empty when nobody does."""
        claim = self.claims.get(oid[:TASK_ID_BYTES])
        return b"" if claim is None else claim.worker

    # ------------------------------------------------------------ what there is

    def on_died(self, event: ForeignProcessDied, effects: list[Effect]) -> None:
        """A process of another node is dead that had to do with workers here."""
        if event.process in self.estates:
            return
        runners = self._directory._succession.runners
        executors = self._directory.may_have_calls_of(event.process, event.executors)
        waiting = {worker: None for worker in executors if worker in runners}
        estate = self.estates[event.process] = Estate(event.node, waiting)
        estate.begun = self._directory._succession.bereaved.pop(event.process, self) is None
        effects.extend(AskClaims(worker, event.process) for worker in estate.waiting)
        if not estate.waiting:
            self._settle(event.process, effects)

    def on_complete(self, event: EstatesComplete, effects: list[Effect]) -> None:
        """A node is dead, and ForeignProcessDied was told of all its processes."""
        self._complete[event.node] = None
        self._answer(effects)

    def on_claimed(self, event: Claimed, effects: list[Effect]) -> None:
        """A worker says which tasks of a dead process it has."""
        estate = self.estates.get(event.process)
        if estate is None or event.worker not in estate.waiting:
            return
        for task_id in event.task_ids:
            if task_id not in self.claims:
                self.claims[task_id] = Claim(event.process, estate.node, event.worker)
        estate.begun = estate.begun or event.begun
        del estate.waiting[event.worker]
        if not estate.waiting:
            self._settle(event.process, effects)

    def _settle(self, process: bytes, effects: list[Effect]) -> None:
        effects.append(EstateSettled(process))
        effects.append(ExpireLater(process))
        self._answer(effects)

    def takes(self, event: Published, effects: list[Effect]) -> bool:
        """Whether a value is a result of a task whose submitter, which is of another node, is gone; perhaps before it is known to be dead."""
        oid, value = event.oid, event.value
        task_id = oid[:TASK_ID_BYTES]
        claim = self.claims.get(task_id)
        if claim is None:
            estate = self.estates.get(event.of)
            home = estate.node if estate is not None else event.of_node
            if not home:
                return False
            claim = self.claims[task_id] = Claim(event.of, home, event.sender)
        if type(value) is Stored and not value.node:
            value.node = self._directory._node_id
        if claim.expired and oid not in claim.wanted:
            self._let_go(oid, value, effects)
        elif oid not in claim.values:
            self._directory._contain(refs_inside(value), effects)
            claim.values[oid] = value
            if oid in claim.wanted:
                self._deliver(claim, oid, effects)
        if not event.left:
            self._end(task_id, claim, effects)
        return True

    def _end(self, task_id: bytes, claim: Claim, effects: list[Effect]) -> None:
        """Nothing more comes of a task."""
        claim.worker = b""
        wanted, claim.wanted = claim.wanted, {}
        for oid, node in wanted.items():
            self._tell(node, oid, None, effects)
        if not claim.values:
            del self.claims[task_id]

    def worker_died(self, worker: bytes, effects: list[Effect]) -> None:
        """A worker of this node is dead; all that it wrote was read."""
        for process, estate in list(self.estates.items()):
            if worker in estate.waiting:
                del estate.waiting[worker]
                estate.begun = True
                if not estate.waiting:
                    self._settle(process, effects)
        for task_id, claim in [item for item in self.claims.items() if item[1].worker == worker]:
            left = self.estates.get(claim.process)
            if left is not None:  # who asks from now on is not told of the task
                left.begun = True
            self._end(task_id, claim, effects)

    # ------------------------------------------------------------ who wants it

    def on_asked(self, event: ClaimsAsked, effects: list[Effect]) -> None:
        """A node asks what there is of a process of its own, or of a node whose heir it is."""
        self._questions.append(event)
        self._answer(effects)

    def _answer(self, effects: list[Effect]) -> None:
        questions, self._questions = self._questions, []
        for question in questions:
            of = question.of
            # An heir may have died before it took anything: whoever asks for it is told what any dead home has left.
            concerned = [
                each
                for name, each in self.estates.items()
                if name == of or (question.is_node and self._is_dead(each.node))
            ]
            if any(each.waiting for each in concerned) or (question.is_node and of not in self._complete):
                self._questions.append(question)
                continue
            task_ids = [
                task_id
                for task_id, claim in self.claims.items()
                if claim.process == of or any(map(self._is_dead, (claim.home, *claim.homes.values())))
            ]
            effects.append(TellClaims(question.node, of, task_ids, any(each.begun for each in concerned)))

    def on_taken(self, event: ClaimsTaken, effects: list[Effect]) -> None:
        """A node wants these: it is their home now."""
        for oid in event.oids:
            claim = self.claims.get(oid[:TASK_ID_BYTES])
            home = claim.homes.get(oid, claim.home) if claim is not None else b""
            if claim is None or not (event.of in (claim.process, home) or self._is_dead(home)):
                self._tell(event.node, oid, None, effects)
                continue
            claim.homes[oid] = event.node
            if oid in claim.values:
                claim.wanted[oid] = event.node
                self._deliver(claim, oid, effects)
                self._forget_idle(oid[:TASK_ID_BYTES], claim)
            elif claim.worker:
                claim.wanted[oid] = event.node
            else:
                self._tell(event.node, oid, None, effects)

    def _is_dead(self, node: bytes) -> bool:
        return self._directory._holds_abroad.cause_of_death(node) is not None

    def _deliver(self, claim: Claim, oid: bytes, effects: list[Effect]) -> None:
        """A value that is there goes to who has taken it."""
        directory = self._directory
        value, node = claim.values.pop(oid), claim.wanted.pop(oid)
        nested = refs_inside(value)
        if node != directory._node_id:
            directory._handings.bequeath(node, nested, effects)
        self._tell(node, oid, value, effects)
        self._uncontain(nested)

    def _tell(self, node: bytes, oid: bytes, value: Value | None, effects: list[Effect]) -> None:
        if node == self._directory._node_id:
            self._directory._claims.on_made(ClaimMade(node, oid, value), effects)
        else:
            effects.append(TellClaimMade(node, oid, value))

    def _uncontain(self, nested: list[bytes]) -> None:
        directory = self._directory
        for inner in nested:
            directory._objects[inner].stamp = directory._issued
        directory._uncontain(nested, directory._candidates)

    def _forget_idle(self, task_id: bytes, claim: Claim) -> None:
        if not claim.worker and not claim.values and not claim.wanted:
            self.claims.pop(task_id, None)

    def node_died(self, node: bytes, effects: list[Effect]) -> None:
        """Another node is dead: what it has taken is there for its heirs."""
        self._questions = [question for question in self._questions if question.node != node]
        taken = [claim for claim in self.claims.values() if node in claim.homes.values()]
        for claim in taken:
            claim.wanted = {oid: taker for oid, taker in claim.wanted.items() if taker != node}
            claim.expired = False
        if taken:
            effects.append(ExpireLater(node))

    def on_expired(self, event: EstateExpired, effects: list[Effect]) -> None:
        """Who could want what a process or a node has left has had time to say so."""
        self.estates.pop(event.of, None)
        for task_id, claim in list(self.claims.items()):
            if claim.belongs_to(event.of):
                claim.expired = True
                for oid, value in claim.values.items():
                    self._uncontain(refs_inside(value))
                    self._let_go(oid, value, effects)
                claim.values.clear()
                self._forget_idle(task_id, claim)

    def _let_go(self, oid: bytes, value: Value, effects: list[Effect]) -> None:
        if type(value) is Stored:
            effects.append(FreeStored(oid))


HANDLERS: dict[type, Any] = {
    ForeignProcessDied: lambda directory, event, effects: directory._estates.on_died(event, effects),
    EstatesComplete: lambda directory, event, effects: directory._estates.on_complete(event, effects),
    ClaimsAsked: lambda directory, event, effects: directory._estates.on_asked(event, effects),
    ClaimsTaken: lambda directory, event, effects: directory._estates.on_taken(event, effects),
}
