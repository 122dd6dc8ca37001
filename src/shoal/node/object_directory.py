"""Who holds which escaped object of this node, and what its value is.

Purpose: the node's home of every ref that left its owner: holds per process, values, resolution, and the moment when nobody holds an object.

Design: one pure machine, `handle(event, now) -> list[Effect]`. Events are the object messages of the processes, with their sender.

    Escaped     the owner holds the objects from now on, and they are known
    Published   the value; the refs inside it are held by the object itself until it is freed (`nested`)
    Held, Released     a row of the table process x object goes up or down; negative for a moment when two sockets race
    ResolveAsked       the value is sent when it is known; an id still unknown after a sweep is lost
    RefsReceived       refs that a worker held in another's name, and died before it told: those holds end (`handed_refs`)
    ProcessDied        its rows vanish; what it owed (owned, not published) gets a successor, what it published stays

An object is freed when all its rows are zero, no object contains it, and a *sweep* issued after that found it untouched. A sweep is the
shell's proof that every local socket was seen empty since the token was issued; because a Hold is written before whatever makes the
former holder let go, an untouched object is then held by nobody. Every change of an object's rows stamps it with the number of tokens
issued so far; `Swept(T)` covers what is stamped below T. What a freed object contained is covered by the same token if only the
container kept it: whoever took a ref out of the container wrote its Hold before it let the container go. So a chain of any depth goes at once.

Other nodes: every object has a *home*, the node where it escaped. There another node counts as one process, named by its NodeID; here, an
object of another home has a *foreign* row (`row.abroad`) that counts this node's processes, and is itself one holder there
(`foreign_holds`). A foreign row that nobody holds any more is let go at the home after the same sweep. A row may be counted before its home is
known: the HoldFor that tells it is still on its way.

Rows live in one place, `_held[process][oid]`, so the death of a process costs what it held; an entry only counts its rows.
Measured: Escape + Publish + Hold + Release, each its own event, and the sweep's share: about 5 us.

How to extend: an event gets a row in `_HANDLERS`. Dead owners and lost objects are the matter of `succession`, a part of this machine.

What it does not do: sockets, the store's blocks (`FreeStored` and `EnsureResident` go to the store table), or unpickling anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shoal.node import claims, copies, estates, handings, mirrors, needs, residency, succession
from shoal.node.foreign_holds import PROMISED, ForeignHolds
from shoal.node.handed_refs import HandedRefs, as_caller
from shoal.node.object_events import (
    ActorHandleGone,
    Claimed,
    Effect,
    EnsureResident,
    Escaped,
    Event,
    FreeStored,
    Held,
    KeepStored,
    Lost,
    NodeDied,
    NodeHoldArrived,
    NodeHoldConfirmed,
    NodeJoined,
    NodeReleaseArrived,
    ProcessDied,
    ProcessJoined,
    Promised,
    PromiseKept,
    Published,
    RefsReceived,
    Released,
    RequestSweep,
    ResolveAsked,
    ResolvedAbroad,
    SendBeingRemade,
    SendNodeHeld,
    SendResolved,
    SendResolveFor,
    Swept,
)
from shoal.node.object_rows import Abroad, ObjectRow
from shoal.node.succession import Succession, is_put, would_have_saved
from shoal.protocol.errors import ObjectLostError, OwnerDiedError
from shoal.protocol.ids import ACTOR_HANDLE_INDEX, TASK_ID_BYTES
from shoal.protocol.messages import Failed, Stored, Value
from shoal.protocol.values import refs_inside


class ObjectDirectory:
    """The table of one node.

    Args:
        dump_error: how an exception becomes the bytes of `Failed` (serialization.dumps_error).
        node_id: this node's; stands in the `Stored` values that leave.
    """

    __slots__ = (
        "_asked",
        "_candidates",
        "_claims",
        "_copies",
        "_dump_error",
        "_estates",
        "_handings",
        "_held",
        "_holds_abroad",
        "_issued",
        "_mirrors",
        "_needs",
        "_node_id",
        "_nodes",
        "_objects",
        "_owed",
        "_succession",
        "_sweeping",
        "_underway",
    )

    def __init__(self, dump_error: Callable[[BaseException], bytes], node_id: bytes = b"") -> None:
        self._dump_error = dump_error
        self._node_id = node_id
        #: the other nodes that live; each is a process of `_held` too
        self._nodes: dict[bytes, None] = {}
        self._holds_abroad = ForeignHolds()
        #: refs in results for processes of this node, until they are known to have come
        self._underway = HandedRefs()
        self._objects: dict[bytes, ObjectRow] = {}
        #: process -> oid -> count, never 0; the keys are the processes that live
        self._held: dict[bytes, dict[bytes, int]] = {}
        #: process -> what it owns and has not published; keys as `_held`
        self._owed: dict[bytes, dict[bytes, None]] = {}
        #: objects whose rows were seen at zero, in that order; may have risen again
        self._candidates: dict[bytes, None] = {}
        #: unknown objects that somebody wants -> stamp of the asking
        self._asked: dict[bytes, int] = {}
        #: how objects are made, and what dead owners leave behind
        self._succession = Succession(self)
        self._claims = claims.Claims(self)
        self._estates = estates.Estates(self)
        self._handings = handings.Handings(self)
        self._mirrors = mirrors.Mirrors(self)
        self._needs = needs.Needs(self)
        self._copies = copies.Copies(self)
        #: tokens issued so far
        self._issued = 0
        #: token number `_issued` is outstanding
        self._sweeping = False

    # ------------------------------------------------------------ queries

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "objects": len(self._objects),
            "processes": len(self._held),
            "holds": sum(len(held) for held in self._held.values()),
            "candidates": len(self._candidates),
            "sweeps": self._issued,
            **self._handings.statistics(),
            **self._claims.statistics(),
            **self._estates.statistics(),
            "underway": self._underway.underway(),
            **self._holds_abroad.statistics(),
            **self._succession.statistics(),
            **self._mirrors.statistics(),
            **self._needs.statistics(),
            **self._copies.statistics(),
        }

    def home_of(self, oid: bytes) -> bytes:
        """The other node that is an object's home; empty for this one's, and when it is not known."""
        row = self._objects.get(oid)
        return b"" if row is None or row.abroad is None else row.abroad.home

    def knows_node(self, node: bytes) -> bool:
        """Whether another node was told to live, and has not died."""
        return node in self._nodes

    def value_of(self, oid: bytes) -> Value | None:
        """The published value, if any."""
        row = self._objects.get(oid)
        return None if row is None else row.value

    def lies_here(self, oid: bytes) -> bool:
        """Whether an object of this home lies in this node's store."""
        row = self._objects.get(oid)
        value = row.value if row is not None and row.abroad is None else None
        return type(value) is Stored and value.node == self._node_id

    def owner_of(self, oid: bytes) -> bytes:
        """The process that owns the object; empty when it is not known or dead."""
        row = self._objects.get(oid)
        return b"" if row is None else row.owner

    def claimant_of(self, oid: bytes) -> bytes:
        """The worker of this node that runs the task of a dead process of another one; empty when none does."""
        return self._estates.claimant_of(oid)

    def is_made_anew(self, oid: bytes) -> bool:
        """Whether a process owes the object that was told to run its task: nobody claims to run it already."""
        owner = self.owner_of(oid)
        return owner in self._succession.runners and oid in self._owed[owner] and oid not in self._succession.claims

    def copies(self) -> copies.Copies:
        """Its part that knows what outlives this node."""
        return self._copies

    def inherit(self) -> None:
        """This node is one of many: objects whose home dies get another one."""
        self._mirrors.inherits = True
        self._owed.setdefault(self._node_id, {})  # what its workers have of dead nodes' processes

    def recorded(self, oids: list[bytes]) -> dict[str, Any]:
        """Whether others know objects, and how the first was made, as far as is known: for a task that is repeated."""
        rows, spec = [self._objects.get(oid) for oid in oids], self._succession.specs.get(oids[0])
        known = all(row is not None and row.known for row in rows)
        return {"known": known, "lineage": spec.lineage_of(oids[0]) if spec is not None else b""}

    def keeps_for_heirs(self, oid: bytes) -> bool:
        """Whether a result of a dead process of another node lies here for who will take it."""
        return self._estates.keeps(oid)

    def owes(self, process: bytes) -> bool:
        """Whether others may wait for values that only this process can publish."""
        return bool(self._owed.get(process))

    def holders(self, oid: bytes) -> dict[bytes, int]:
        """Counts by process: for `shoal memory` and tests; walks all processes."""
        return {process: held[oid] for process, held in self._held.items() if oid in held}

    def may_have_calls_of(self, caller: bytes, executors: list[bytes]) -> list[bytes]:
        """Who is to be asked what a dead process has left with them: also all that it has handed refs to in calls, as only they know what came."""
        return list(dict.fromkeys([*executors, *self._underway.receivers_of(as_caller(caller))]))

    # ------------------------------------------------------------ the door

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in an event; what to do about it, in this order. `now` is unused: nothing here depends on time."""
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, effects)
        self._needs.flush(effects)
        self._mirrors.tell_values(effects)
        if self._mirrors.gone:
            self._mirrors.tell_gone(effects)
        if (self._candidates or self._asked or self._succession.doubtful) and not self._sweeping:
            self._sweeping = True
            self._issued += 1
            effects.append(RequestSweep(self._issued))
        return effects

    # ------------------------------------------------------------ processes

    def _on_joined(self, event: ProcessJoined, effects: list[Effect]) -> None:
        self._held.setdefault(event.process, {})
        self._owed.setdefault(event.process, {})
        if event.runs:
            self._succession.joined(event.process, event.is_driver)

    def _on_died(self, event: ProcessDied, effects: list[Effect]) -> None:
        held = self._held.pop(event.process, None)
        if held is None:
            return
        event.executors = self.may_have_calls_of(event.process, event.executors)
        self._succession.died(event, list(self._owed.pop(event.process)), effects)
        self._estates.worker_died(event.process, effects)
        self._holds_abroad.process_died(event.process)
        self._underway.forget(event.process)
        self._needs.died(event.process)
        self._drop_holds(held)

    def _on_claimed(self, event: Claimed, effects: list[Effect]) -> None:
        held = self._held.get(event.worker)
        if held is not None:
            self._count(held, self._underway.close(as_caller(event.process), event.worker, event.refs), -1)
        self._succession.claimed(event, effects)
        self._estates.on_claimed(event, effects)

    def _drop_holds(self, held: dict[bytes, int]) -> None:
        objects, candidates, stamp = self._objects, self._candidates, self._issued
        for oid in held:
            row = objects[oid]
            row.rows -= 1
            row.stamp = stamp
            if not row.rows:
                candidates[oid] = None

    # ------------------------------------------------------------ rows

    def _on_escaped(self, event: Escaped, effects: list[Effect]) -> None:
        sender = event.sender
        held = self._held.get(sender)
        if held is None:
            return
        if event.lineage:
            self._succession.note(event, effects)
            if event.freed:
                return
        owed = self._owed[sender]
        fresh = []
        for oid in event.oids:
            row = self._objects.get(oid)
            if row is None:
                row = self._objects[oid] = ObjectRow()
            elif row.owner == sender and oid in held:
                self._succession.counted.pop(oid, None)
                continue  # said before
            fresh.append(oid)
            if row.owner and row.owner != sender:
                continue  # a second owner is no more than a holder
            row.known = True
            row.owner = sender
            self._succession.ghosts.pop(oid, None)
            self._asked.pop(oid, None)
            if row.abroad is not None:
                self._bring_home(oid, row, row.abroad)
            if row.value is None:
                owed[oid] = None
        self._count(held, fresh, 1)

    def _bring_home(self, oid: bytes, row: ObjectRow, abroad: Abroad) -> None:
        """What another node is, or was, the home of is made once more by an owner here (an actor's replay): this node's own from now on."""
        row.abroad = None
        if type(row.value) is Failed:
            row.value = None
        if abroad.taken:
            self._holds_abroad.release(abroad.home, oid, abroad.taken)
            self._candidates[oid] = None  # after the next sweep, as whatever is let go abroad

    def _on_held(self, event: Held, effects: list[Effect]) -> None:
        if event.sender in self._held:
            held = self._held.get(event.holder or event.sender)
            if event.home and event.home != self._node_id:
                self._hold_abroad(event, held, effects)
            elif held is not None:
                self._count(held, event.oids, 1)
            if event.home and event.home == self._node_id:
                self._holds_abroad.confirm_later(event.sender, 0, effects)
            if event.holder and held is not None:
                giver = as_caller(event.sender) if event.in_call else event.sender
                self._underway.give(giver, event.holder, event.oids)

    def _on_refs_received(self, event: RefsReceived, effects: list[Effect]) -> None:
        held = self._held.get(event.receiver)
        if held is None:
            return
        if event.last:
            self._count(held, self._underway.close(event.giver, event.receiver, event.count), -1)
        else:
            self._underway.receive(event.giver, event.receiver, event.count)

    def _on_released(self, event: Released, effects: list[Effect]) -> None:
        if event.sender in self._held:
            held = self._held.get(event.holder or event.sender)
            if held is not None:
                self._count(held, event.oids, -1)

    def _count(self, held: dict[bytes, int], oids: Iterable[bytes], change: int) -> None:
        """Change one process's counts."""
        objects, stamp = self._objects, self._issued
        for oid in oids:
            row = objects.get(oid)
            if row is None:
                row = objects[oid] = ObjectRow()
            row.stamp = stamp
            before = held.get(oid, 0)
            after = before + change
            if after:
                held[oid] = after
                if not before:
                    row.rows += 1
            else:
                del held[oid]
                row.rows -= 1
                if not row.rows:
                    self._candidates[oid] = None

    # ------------------------------------------------------------ values

    def _on_published(self, event: Published, effects: list[Effect]) -> None:
        owed = self._owed.get(event.sender)
        if owed is None:
            return
        if event.of and self._estates.takes(event, effects):
            return
        oid, value = event.oid, event.value
        row = self._objects.get(oid)
        if row is None:  # its last holder went before the value came
            row = self._objects[oid] = ObjectRow()
        if not row.rows:
            row.stamp = self._issued
            self._candidates[oid] = None
        row.known = True
        self._asked.pop(oid, None)
        # The owner may be dead, and a worker tell once more what that had told.
        self._owed.get(row.owner, {}).pop(oid, None)
        row.resident = True
        before, row.value = row.value, value
        self._succession.published(oid, before, value, effects)
        if type(value) is Stored:
            if not value.node:
                value.node = self._node_id
            elif value.node != self._node_id:
                if self._holds_abroad.cause_of_death(value.node) is None:
                    effects.append(KeepStored(value.node, oid, bool(value.nested)))
                elif self._succession.can_be_remade(oid, row):
                    self._succession.fell(oid)
                else:
                    row.value = value = self._lost_with(value.node, oid)
        nested = refs_inside(value)
        if nested or row.nested:
            self._contain(nested, effects)
            self._replace_nested(row, nested)
        if row.waiters is not None:
            self._answer_waiters(oid, row, value, effects)

    def _contain(self, oids: list[bytes], effects: list[Effect]) -> None:
        for oid in oids:
            row = self._objects.get(oid)
            if row is None:
                row = self._objects[oid] = ObjectRow()
            row.rows += 1
            row.stamp = self._issued
            if row.abroad is not None and not row.abroad.taken:
                self._take(row.abroad.home, [oid], effects)

    def _replace_nested(self, row: ObjectRow, nested: list[bytes]) -> None:
        """An object contains these from now on, each counted already."""
        former, row.nested = row.nested, nested
        for inner in former:
            self._objects[inner].stamp = self._issued  # no token covers a container that lives on
        self._uncontain(former, self._candidates)

    def _uncontain(self, oids: list[bytes], empty: dict[bytes, None]) -> None:
        """A container lets `oids` go; those left without any row are put into `empty`. Their stamps stay (see the top)."""
        for oid in oids:
            row = self._objects[oid]
            row.rows -= 1
            if not row.rows:
                empty[oid] = None

    def _on_resolve_asked(self, event: ResolveAsked, effects: list[Effect]) -> None:
        process = event.process
        if process not in self._held:
            return
        if event.home and event.home != self._node_id:
            self._resolve_abroad(event, effects)
            return
        for oid in event.oids:
            row = self._objects.get(oid)
            if row is None:
                row = self._objects[oid] = ObjectRow()
            if row.abroad is not None and event.home:
                self._move_home(oid, row, row.abroad, event.home)
            value = row.value
            if row.abroad is not None and (event.stale_node or not event.stale_generation):
                self._resolve_abroad(
                    ResolveAsked(process, [oid], event.stale_generation, row.abroad.home, event.stale_node), effects
                )
            elif type(value) is Stored:
                if self._is_lost_abroad(value, event):
                    self._wait(row, process)
                    reason = f"it lay on node {value.node.hex()[:8]}, from which it cannot be had"
                    cause = self._holds_abroad.cause_of_death(value.node)
                    self._succession.lost(
                        Lost(oid, f"{reason}: {cause}" if cause else reason, node=value.node), effects
                    )
                elif process in self._nodes and (value.node, value.generation) == (
                    event.stale_node,
                    event.stale_generation,
                ):
                    self._wait(row, process)  # here it lies, if it does
                    effects.append(EnsureResident(oid, process))
                elif process in self._nodes or value.node != self._node_id:
                    self._tell(process, oid, value, effects)  # it is pulled from wherever it lies by then
                elif row.resident and value.generation != event.stale_generation:
                    effects.append(SendResolved(process, oid, value))
                else:
                    self._wait(row, process)
                    effects.append(EnsureResident(oid, process))
            elif value is not None:
                self._tell(process, oid, value, effects)
            else:
                self._wait(row, process)
                if event.stale_generation:
                    if not row.known and not event.stale_node:
                        if row.abroad is not None:
                            row.abroad.stale = event.stale_generation
                        effects.append(EnsureResident(oid, process))
                    elif not row.known:
                        self._asked[oid] = self._issued
                    else:  # it was stored, and is not: it was lost
                        effects.append(SendBeingRemade(process, oid))
                elif not row.known and not self._succession.revive(oid, row, effects):
                    self._asked[oid] = self._issued

    def _is_lost_abroad(self, value: Stored, event: ResolveAsked) -> bool:
        """Whether a value that lay on another node cannot be had any more."""
        if value.node == self._node_id:
            return False
        told = value.node == event.stale_node and value.generation == event.stale_generation
        return told or self._holds_abroad.cause_of_death(value.node) is not None

    def _wait(self, row: ObjectRow, process: bytes) -> None:
        if row.waiters is None:
            row.waiters = [process]
        elif process not in row.waiters:
            row.waiters.append(process)

    def _answer_waiters(self, oid: bytes, row: ObjectRow, value: Value, effects: list[Effect]) -> None:
        waiters, row.waiters = row.waiters, None
        for process in waiters or ():
            if process in self._held:
                self._tell(process, oid, value, effects)

    def _tell(self, process: bytes, oid: bytes, value: Value, effects: list[Effect]) -> None:
        effects.append(SendResolved(process, oid, value))
        if process in self._nodes and self._mirrors.give(process, oid):
            self._handings.hand_inside(process, value, effects)

    def _lost(self, oid: bytes, reason: str) -> Failed:
        return Failed(self._dump_error(ObjectLostError(reason, object_id=oid.hex())))

    def _drop_if_idle(self, oid: bytes, row: ObjectRow) -> None:
        """Forget an unknown object that nobody holds or waits for; it is not ours to free."""
        if not row.rows and row.waiters is None and (row.abroad is None or not row.abroad.taken):
            del self._objects[oid]
            self._candidates.pop(oid, None)
            self._asked.pop(oid, None)
            self._owed.get(row.owner, {}).pop(oid, None)  # submitted here once more, by a replay
            self._replace_nested(row, [])
            if row.abroad is not None:
                self._succession.freed(oid, row.value, row.abroad.home)

    # ------------------------------------------------------------ the end of objects

    def _on_swept(self, event: Swept, effects: list[Effect]) -> None:
        token = event.token
        if token != self._issued or not self._sweeping:
            return
        self._sweeping = False
        pending, self._candidates = self._candidates, {}
        while pending:
            following: dict[bytes, None] = {}
            for oid in pending:
                row = self._objects.get(oid)
                if row is None or row.rows:
                    continue
                if row.stamp < token:
                    self._free(oid, row, following, effects)
                else:
                    self._candidates[oid] = None
            pending = following
        for oid in [oid for oid, stamp in self._asked.items() if stamp < token]:
            del self._asked[oid]
            row = self._objects.get(oid)
            if row is not None:
                reason = f"object {oid.hex()} was freed before it was asked for, or belongs to another cluster"
                self._answer_waiters(oid, row, self._lost(oid, reason), effects)
                self._drop_if_idle(oid, row)
        self._succession.swept(token, effects)
        self._needs.flush(effects)  # before the homes free what is let go
        self._holds_abroad.flush(effects)

    def _free(self, oid: bytes, row: ObjectRow, following: dict[bytes, None], effects: list[Effect]) -> None:
        if row.abroad is not None:
            self._let_go_abroad(oid, row, row.abroad)
            return
        del self._objects[oid]
        self._asked.pop(oid, None)
        self._succession.freed(oid, row.value)
        self._succession.forget_left(oid, row.value, effects)
        self._copies.freed(oid, effects)
        self._owed.get(row.owner, {}).pop(oid, None)
        if row.waiters is not None:
            self._answer_waiters(oid, row, self._lost(oid, f"object {oid.hex()} was released while asked for"), effects)
        if oid[TASK_ID_BYTES:] == ACTOR_HANDLE_INDEX and row.known:
            effects.append(ActorHandleGone(oid[:TASK_ID_BYTES]))
        elif type(row.value) is Stored:
            effects.append(FreeStored(oid, row.value.node if row.value.node != self._node_id else b""))
        if row.nested:
            self._uncontain(row.nested, following)

    # ------------------------------------------------------------ other nodes: this one holds there

    def _foreign_row(self, oid: bytes, home: bytes, effects: list[Effect]) -> Abroad | None:
        """The row of an object of another home, which is noted if it was not known; None when the object is this node's."""
        row = self._objects.get(oid)
        if row is None:
            row = self._objects[oid] = ObjectRow()
        if row.abroad is None:
            if row.known:
                return None
            row.abroad = Abroad(home)
            self._asked.pop(oid, None)
            cause = self._holds_abroad.cause_of_death(home)
            if cause is not None and not self._mirrors.ask_heir(oid, row, effects):
                self._fail_homeless(oid, row, cause, effects)
        elif row.abroad.home != home and self._holds_abroad.cause_of_death(home) is None:
            self._move_home(oid, row, row.abroad, home)
        return row.abroad

    def _move_home(self, oid: bytes, row: ObjectRow, abroad: Abroad, home: bytes) -> None:
        """A ref comes from a living home, while the one that is known here is dead: there it was made once more (an actor's replay)."""
        if self._holds_abroad.cause_of_death(abroad.home) is None:
            return
        if self._mirrors.asks_for(oid):
            abroad.instead = home  # if it has no heir
        elif type(row.value) is Failed:
            row.value = None
            # here its owner's word may still be to be read
            row.abroad = None if home == self._node_id else Abroad(home)

    def _take(self, home: bytes, oids: list[bytes], effects: list[Effect]) -> int:
        """See that this node holds objects at their home; returns the number of the NodeHold that brings it, 0 for none."""
        if self._holds_abroad.cause_of_death(home) is not None:
            return 0
        last = 0
        fresh: list[Abroad] = []
        lacking: list[bytes] = []
        for oid in oids:
            abroad = self._objects[oid].abroad
            if abroad is None or abroad.home != home:
                continue
            if not abroad.taken:
                abroad.taken = 1
                fresh.append(abroad)
                lacking.append(oid)
            elif abroad.number > last:
                last = abroad.number
        if lacking:
            last = self._holds_abroad.hold(home, lacking, effects)
            for abroad in fresh:
                abroad.number = last
        return last

    def _let_go_abroad(self, oid: bytes, row: ObjectRow, abroad: Abroad) -> None:
        """Nobody here holds an object of another home any more."""
        if abroad.taken:
            if oid in self._succession.needed and type(row.value) is not bytes and oid not in self._succession.specs:
                self._needs.let_go(oid, abroad.home)
            self._holds_abroad.release(abroad.home, oid, abroad.taken)
            abroad.taken = abroad.number = 0
        # Who asked for it before may hold it anew when the answer comes: it must be the true one.
        self._drop_if_idle(oid, row)

    def _hold_abroad(self, event: Held, held: dict[bytes, int] | None, effects: list[Effect]) -> None:
        number = 0
        if held is not None:
            for oid in event.oids:
                self._foreign_row(oid, event.home, effects)
            self._count(held, event.oids, 1)
            abroad = {oid: row.abroad for oid in event.oids if (row := self._objects[oid]).abroad is not None}
            for home in dict.fromkeys(each.home for each in abroad.values()):
                number = max(number, self._take(home, list(abroad), effects))
        self._holds_abroad.confirm_later(event.sender, number, effects)

    def _resolve_abroad(self, event: ResolveAsked, effects: list[Effect]) -> None:
        asked: dict[bytes, list[bytes]] = {}
        for oid in event.oids:
            abroad = self._foreign_row(oid, event.home, effects)
            if abroad is None:
                own = ResolveAsked(event.process, [oid], event.stale_generation, b"", event.stale_node)
                self._on_resolve_asked(own, effects)
                continue
            row = self._objects[oid]
            if row.value is not None:
                effects.append(SendResolved(event.process, oid, row.value))
                self._drop_if_idle(oid, row)
                continue
            self._wait(row, event.process)
            if not abroad.asked or event.stale_node:
                abroad.asked = True
                asked.setdefault(abroad.home, []).append(oid)  # which may be the heir of the one named
        for home, oids in asked.items():
            effects.append(SendResolveFor(home, oids, event.stale_generation, event.stale_node))

    def _on_resolved_abroad(self, event: ResolvedAbroad, effects: list[Effect]) -> None:
        row = self._objects.get(event.oid)
        if row is None or row.abroad is None or row.abroad.home != event.node:
            return
        row.abroad.asked = False
        if type(event.value) is not Stored:  # that may move
            row.value = event.value
        if row.rows and not row.nested:
            row.nested = refs_inside(event.value)
            self._contain(row.nested, effects)
        self._answer_waiters(event.oid, row, event.value, effects)
        self._drop_if_idle(event.oid, row)

    def _on_promised(self, event: Promised, effects: list[Effect]) -> None:
        self._holds_abroad.promise(event.process, event.number, effects)

    def _on_promise_kept(self, event: PromiseKept, effects: list[Effect]) -> None:
        self._holds_abroad.confirmed(PROMISED, event.number, effects)

    def _on_hold_confirmed(self, event: NodeHoldConfirmed, effects: list[Effect]) -> None:
        self._holds_abroad.confirmed(event.node, event.number, effects)

    # ------------------------------------------------------------ other nodes: they hold here

    def _on_node_joined(self, event: NodeJoined, effects: list[Effect]) -> None:
        if self._holds_abroad.cause_of_death(event.node) is None:
            self._nodes[event.node] = None
            self._held.setdefault(event.node, {})
            self._owed.setdefault(event.node, {})
            self._copies.node_joined(effects)

    def _on_node_hold(self, event: NodeHoldArrived, effects: list[Effect]) -> None:
        if event.node in self._nodes:
            self._count(self._held[event.node], event.oids, 1)
            self._mirrors.hold(event.node, event.oids, effects)
            effects.append(SendNodeHeld(event.node, event.number))

    def _on_node_release(self, event: NodeReleaseArrived, effects: list[Effect]) -> None:
        if event.node in self._nodes:
            held = self._held[event.node]
            for oid, count in event.items:
                self._count(held, (oid,), -count)
                if oid in held:
                    self._mirrors.let_go(event.node, oid)

    # ------------------------------------------------------------ other nodes: their end

    def _on_node_died(self, event: NodeDied, effects: list[Effect]) -> None:
        node = event.node
        if self._holds_abroad.cause_of_death(node) is not None:
            return
        self._holds_abroad.node_died(node, event.cause, effects)
        self._nodes.pop(node, None)
        owed = self._owed.pop(node, {})
        self._mirrors.node_died(node)
        self._needs.died(node)
        self._drop_holds(self._held.pop(node, {}))
        self._handings.node_died(node, effects)
        self._copies.node_died(node, effects)
        for oid, row in list(self._objects.items()):
            if row.abroad is not None:
                if row.abroad.home == node and not self._mirrors.ask_heir(oid, row, effects):
                    self._fail_homeless(oid, row, event.cause, effects)
                    self._drop_if_idle(oid, row)
            elif type(row.value) is not Stored or row.value.node != node or self._copies.instead(oid, row, effects):
                continue
            elif self._succession.can_be_remade(oid, row):
                self._succession.fell(oid)
            else:
                row.value = self._lost_with(node, oid)
                nested, row.nested = row.nested, []
                self._uncontain(nested, self._candidates)
        self._estates.node_died(node, effects)
        self._claims.node_died(node, owed, event.cause, effects)
        self._mirrors.forget_dead()

    def _fail_homeless(self, oid: bytes, row: ObjectRow, cause: str, effects: list[Effect]) -> None:
        """The home of an object is dead: nobody knows its value any more."""
        assert row.abroad is not None, "of another home"
        row.abroad.taken = row.abroad.number = 0
        row.abroad.asked = False
        if row.value is None:
            maker = f"{'put' if is_put(oid) else 'made'} by task {oid[:TASK_ID_BYTES].hex()}"
            what = (
                f"object {oid.hex()}, {maker}, is lost with the node {row.abroad.home.hex()[:8]} that its owner ran on"
            )
            what = f"{what}: {cause}{would_have_saved(oid)}"
            row.value = Failed(self._dump_error(OwnerDiedError(what, object_id=oid.hex())))
        self._answer_waiters(oid, row, row.value, effects)

    def _lost_with(self, node: bytes, oid: bytes) -> Failed:
        cause = f"{self._holds_abroad.cause_of_death(node)}{would_have_saved(oid)}"
        return self._lost(oid, f"object {oid.hex()} lay in the store of node {node.hex()[:8]}, which is dead: {cause}")


_HANDLERS: dict[type, Callable[[ObjectDirectory, Any, list[Effect]], None]] = {
    Held: ObjectDirectory._on_held,
    Released: ObjectDirectory._on_released,
    Promised: ObjectDirectory._on_promised,
    PromiseKept: ObjectDirectory._on_promise_kept,
    RefsReceived: ObjectDirectory._on_refs_received,
    Claimed: ObjectDirectory._on_claimed,
    Escaped: ObjectDirectory._on_escaped,
    Published: ObjectDirectory._on_published,
    ResolveAsked: ObjectDirectory._on_resolve_asked,
    Swept: ObjectDirectory._on_swept,
    ProcessJoined: ObjectDirectory._on_joined,
    ProcessDied: ObjectDirectory._on_died,
    NodeJoined: ObjectDirectory._on_node_joined,
    NodeDied: ObjectDirectory._on_node_died,
    NodeHoldArrived: ObjectDirectory._on_node_hold,
    NodeHoldConfirmed: ObjectDirectory._on_hold_confirmed,
    NodeReleaseArrived: ObjectDirectory._on_node_release,
    ResolvedAbroad: ObjectDirectory._on_resolved_abroad,
    **residency.HANDLERS,
    **handings.HANDLERS,
    **claims.HANDLERS,
    **estates.HANDLERS,
    **succession.HANDLERS,
    **mirrors.HANDLERS,
    **needs.HANDLERS,
    **copies.HANDLERS,
}
