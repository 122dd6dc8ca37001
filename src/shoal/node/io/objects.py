"""The object directory's shell: messages become its events, its effects become messages, frees and sweeps.

Purpose: refs that left their owners are held, resolved and freed as the directory says, by processes of this node and by other nodes.

Design: a sweep (rule 2 of "Causality" in docs/ARCHITECTURE.md) waits RELEASE_SWEEP_S, so that one sweep serves many frees, then reads every
local socket until it is seen empty; sockets that never are, because their peer floods, are looked at again in later turns of the loop.

How to extend: a new message gets a method, listed by `daemon` in its table; a new effect a row in `_PERFORM`.

A home that the GCS has not told of is waited for UNKNOWN_WAIT_S, then taken for dead: refs of another cluster must not block anybody.

What it does not do: decide (`node.object_directory`), or touch blocks of the store (`store_shell`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from shoal.node import foreign_holds
from shoal.node import object_events as events
from shoal.node.handed_refs import as_caller
from shoal.node.io.connections import Connection
from shoal.node.io.node_links import UNKNOWN_WAIT_S, NodeLinks
from shoal.node.io.processes import Driver, Process, ProcessTable
from shoal.node.io.store_shell import StoreShell
from shoal.node.object_directory import ObjectDirectory
from shoal.protocol import messages, node_messages
from shoal.protocol.errors import ObjectLostError, ShoalError
from shoal.protocol.limits import RELEASE_SWEEP_S
from shoal.protocol.messages import Failed, Stored
from shoal.protocol.sharding import HEIRS
from shoal.serialization.failures import dumps_error

log = logging.getLogger("shoal.node")

ORPHANED_S = 15.0  #: what is kept for a home that is dead waits so long for its heir, from when the GCS can tell of it
INHERITED_S = (
    3.0  #: an heir keeps what it has inherited so long for the other holders, who ask at once or after HEIR_WAIT_S
)
CLAIMS_WAIT_S = 60.0  #: a living node that does not say what it has of a dead owner is waited for so long
CANCEL_AGAIN_S = (RELEASE_SWEEP_S, 0.1, 0.3, 1.0)  #: after a cancellation for which nobody was found
HEIR_WAIT_S = 1.0  #: a node that cannot make an object waits so long for one that can
SETTLED_OWNERS_MAX = 10_000

#: brings a value of another node here, and tells its place, or why it cannot
Fetch = Callable[[Stored, Callable[[Stored | None, str], None]], None]


class Objects:
    """The escaped refs of this node.

    Args:
        connections: lists all sockets that are open now, registered or not.
        on_handles_gone: gets the id of an actor, whose home is here, of which nobody holds a handle any more.
        links: to the other nodes.
        node_of: the node of a process that is not of this one; None when it is not known.
    """

    def __init__(
        self,
        machine: ObjectDirectory,
        table: ProcessTable,
        store: StoreShell,
        loop: asyncio.AbstractEventLoop,
        connections: Callable[[], Iterable[Connection]],
        on_handles_gone: Callable[[bytes], None],
        links: NodeLinks,
        node_id: bytes,
        node_of: Callable[[bytes], bytes | None],
    ) -> None:
        self.machine = machine
        self._table = table
        self._store = store
        self._loop = loop
        self._connections = connections
        self._on_handles_gone = on_handles_gone
        #: stored objects freed by the event being handled: the store hears of them at once
        self._freed: list[bytes] = []
        self._bringing: set[asyncio.Task[None]] = set()
        self._links = links
        self._node_id = node_id
        self._call_gcs: Callable[..., None] = lambda method, body, answered: answered(None, ["Unavailable", "no GCS"])
        self._node_of = node_of
        #: stored objects here that another node's directory frees: oid -> node
        self._kept_for: dict[bytes, bytes] = {}
        #: those of them that have refs inside, which only that directory knows
        self._with_refs: set[bytes] = set()
        #: dead processes, the latest, of which nothing that lies here is of use but what was told
        self._settled_owners: dict[bytes, None] = {}
        #: further copies here of objects of another home, which frees them: oid -> home
        self._copy_for: dict[bytes, bytes] = {}
        self._fetch: Fetch | None = None
        #: called with (process, count) when holds are confirmed of what is no process: a keeper for a log of another node (`log_holding`)
        self.on_keeper_confirmed: Callable[[bytes, int], None] = lambda process, count: None
        #: homes and holders that the GCS has not told of yet
        self._expected: dict[bytes, None] = {}
        links.on_joined.append(lambda entry: self._meet(entry.node_id))
        links.on_died.append(self._on_node_died)
        # An heir may ask this node too: there is nothing of that home here, and it need not wait.
        links.on_died_before.append(lambda node: self.handle(events.EstatesComplete(node)))
        for kind, method in _FROM_NODES.items():
            links.handlers[kind] = method.__get__(self)

    def handle(self, event: events.Event) -> None:
        """Give the machine an event and do what it says. The store may answer from within, so an event can come while another's effects
        are performed; the directory's own effects are complete by then."""
        for effect in self.machine.handle(event, 0.0):
            _PERFORM[type(effect)](self, effect)
        if self._freed:
            freed, self._freed = self._freed, []
            self._store.free(freed)

    # ---------------------------------------------------------------- messages

    def on_escape(self, process: Process, message: messages.Escape) -> None:
        """Refs leave their owner."""
        self.handle(
            events.Escaped(
                process.worker_id,
                message.oids,
                message.lineage,
                message.needs,
                message.function_id,
                message.freed,
                message.arguments,
                message.cuts,
            )
        )

    def on_lineage_code(self, process: Process, message: messages.LineageCode) -> None:
        """The code of a function that lineage will name."""
        self.handle(events.CodeTold(process.worker_id, message.function_id, message.code))

    def on_claims(self, process: Process, message: messages.Claims) -> None:
        """A worker tells what it has of a dead process."""
        self.handle(events.Claimed(process.worker_id, message.process, message.task_ids, message.begun, message.refs))

    def on_not_made(self, process: Process, message: messages.NotMade) -> None:
        """A successor has run a task."""
        self.handle(events.NotMadeTold(process.worker_id, message.oids, message.error))

    def on_publish(self, process: Process, message: messages.Publish) -> None:
        """A value is known."""
        event = events.Published(process.worker_id, message.oid, message.value)
        if message.of:
            event.of, event.of_node, event.left = message.of, self._node_of(message.of) or b"", message.left
        self.handle(event)

    def on_hold(self, process: Process, message: messages.Hold) -> None:
        """One hold more on each."""
        holder = message.holder
        if not message.home and not holder:  # the plain case
            self.handle(events.Held(process.worker_id, message.oids))
            return
        if message.home:
            self._expect(message.home)
        if holder and holder not in self._table.by_id:
            node = message.node or self._node_of(holder)
            if node is not None and node != self._node_id:
                self._meet(node)
                self.handle(
                    events.HandedAbroad(process.worker_id, message.oids, holder, node, message.home, message.in_call)
                )
                return
        self.handle(events.Held(process.worker_id, message.oids, holder, message.home, message.in_call))

    def hold_as(self, holder: bytes, oids: list[bytes], home: bytes) -> None:
        """One hold on each in the name of what is no process of this node (`ProcessJoined` came before); `on_keeper_confirmed` tells when the home
        counts them."""
        self._expect(home)
        self.handle(events.Held(holder, oids, b"", home))

    def on_release(self, process: Process, message: messages.Release) -> None:
        """One hold fewer on each."""
        self.handle(events.Released(process.worker_id, message.oids, message.holder))

    def on_need_lineage(self, process: Process, message: messages.NeedLineage) -> None:
        """A process has made something from these, and lets them go."""
        self.handle(events.NeedsTold(process.worker_id, message.oids, message.ended))

    def on_refs_received(self, process: Process, message: messages.RefsReceived) -> None:
        """Refs have come from a worker, or will never."""
        giver = as_caller(message.giver) if message.in_calls else message.giver
        self.handle(events.RefsReceived(process.worker_id, giver, message.count, message.last))

    def on_resolve(self, process: Process, message: messages.Resolve) -> None:
        """A process wants values."""
        if message.home:
            self._expect(message.home)
        self.handle(
            events.ResolveAsked(
                process.worker_id, message.oids, message.stale_generation, message.home, message.stale_node
            )
        )

    def on_cancel(self, process: Process, message: messages.CancelObject) -> None:
        """Somebody cancels the task that makes an object: only its owner can, whom the object's home knows. When the home is dead, who runs the task
        can, or has taken it over: any node may have either."""
        home = message.home or self.machine.home_of(message.oid)
        if home and self._links.is_dead(home):
            for node in list(self._links.nodes):
                self._links.send(node, message)
            self._cancel_here(message)
        elif home and home != self._node_id and not self._links.alone:
            self._links.send(home, messages.CancelObject(message.oid, message.force, message.recursive, home))
        else:
            self._cancel_here(message)

    def _cancel_here(self, message: messages.CancelObject) -> None:
        if not self._cancel(message):
            # Its Escape may still stand in the owner's socket (see "Causality"), or its owner is dead and it is not known yet who runs it.
            for pause_s in CANCEL_AGAIN_S:
                self._loop.call_later(pause_s, self._cancel, message)

    def _cancel(self, message: messages.CancelObject) -> bool:
        """Tell who can cancel it, if it is known; those who have done so already do nothing."""
        owner, claimant = self.machine.owner_of(message.oid), self.machine.claimant_of(message.oid)
        process = self._table.by_id.get(owner) or self._table.by_id.get(claimant)
        if process is not None:
            process.send(message)
        elif owner in self._links.nodes:
            self._links.send(owner, message)  # it has claimed the task of a dead process
        return process is not None or owner in self._links.nodes

    def recorded(self, process: bytes, oids: list[bytes]) -> dict[str, Any]:
        """Whether others know all of these results of a task that is repeated, and how it was made. Who asks holds what is known, from now on:
        those who do may let go before they have read the answer."""
        answer = self.machine.recorded(oids)
        if answer["known"]:
            self.handle(events.Held(process, oids))
        return answer

    def joined(self, process: Process) -> None:
        """A process registered."""
        self.handle(events.ProcessJoined(process.worker_id, isinstance(process, Driver)))

    def process_died(
        self, process: Process, cause: str, executors: list[bytes], nodes: list[bytes], submitters: list[bytes]
    ) -> None:
        """A process is dead and its socket was read to the end. `executors`, and workers of `nodes`, may have tasks of it, and it of `submitters`."""
        self.handle(events.ProcessDied(process.worker_id, cause, executors, nodes, submitters))

    def _settled(self, effect: events.OrphansSettled) -> None:
        # What it owned in the store and had never let go of is of use to nobody, nor is what a worker of it had stored that died before it told.
        machine = self.machine
        process = effect.process
        unknown = [oid for oid in self._store.owned_by(process) if type(machine.value_of(oid)) is not Stored]
        private = [oid for oid in unknown if not machine.owner_of(oid)]
        untold = [oid for oid in unknown if machine.is_made_anew(oid)]
        if private:
            self._store.free(private)
        if untold:
            self._store.free(untold, of_dead=True)
        self._settle_owner(process)
        # It may have stored for owners that had gone before, and died before it told.
        left = [row.oid for row in self._store.written_by(process) if row.owner in self._settled_owners]
        useless = [
            oid for oid in left if self._is_unknown(oid) and (not machine.owner_of(oid) or machine.is_made_anew(oid))
        ]
        self._store.free_of(process, useless)

    def _settle_owner(self, process: bytes) -> None:
        self._settled_owners[process] = None
        if len(self._settled_owners) > SETTLED_OWNERS_MAX:
            del self._settled_owners[next(iter(self._settled_owners))]

    def _is_unknown(self, oid: bytes) -> bool:
        """Whether what lies in the store here is the value of no object, as far as anybody has told."""
        machine = self.machine
        known = type(machine.value_of(oid)) is Stored or machine.keeps_for_heirs(oid)
        return not known and oid not in self._kept_for

    def _ask_claims(self, effect: events.AskClaims) -> None:
        self._table.send(effect.worker, messages.SubmitterDied(effect.process))

    def _adopt(self, effect: events.Adopted) -> None:
        self._table.send(
            effect.process,
            messages.Adopt(effect.oids, effect.reason, effect.begun, effect.lineage, effect.needs, effect.code),
        )

    def foreign_process_died(self, process_id: bytes, node: bytes, executors: list[bytes]) -> None:
        """A process of another node is dead. `executors` may have tasks of it."""
        self.handle(events.ForeignProcessDied(process_id, node, executors))

    def owner_gone(self, process_id: bytes) -> None:
        """What a dead process that is not of this node owned in the store here and had never let go of is of use to nobody."""
        private = [oid for oid in self._store.owned_by(process_id) if self._is_unknown(oid)]
        if private:
            self._store.free(private)

    def _estate_settled(self, effect: events.EstateSettled) -> None:
        self._settle_owner(effect.process)
        self.owner_gone(effect.process)

    def on_free(self, process: Process, message: messages.FreeObjects) -> None:
        """An owner says that nobody refers to stored objects any more."""
        if message.node and message.node != self._node_id:
            self._links.send(message.node, node_messages.FreeStored(message.oids, message.giver))
        else:
            self._store.on_free_objects(process.worker_id, message)

    # ---------------------------------------------------------------- other nodes

    def _meet(self, node: bytes) -> None:
        """A node speaks, or is spoken of: perhaps before the GCS has told of it."""
        self._expected.pop(node, None)
        if not self.machine.knows_node(node) and not self._links.is_dead(node):
            self.handle(events.NodeJoined(node))

    def _expect(self, node: bytes) -> None:
        """A home must be known some time, or it is of no use."""
        if node == self._node_id or self.machine.knows_node(node) or node in self._expected:
            return
        cause = self._links.is_dead(node) or ("it belongs to another cluster" if self._links.alone else "")
        if cause:
            self.handle(events.NodeDied(node, cause))
        else:
            self._expected[node] = None
            self._loop.call_later(2 * UNKNOWN_WAIT_S, self._give_up, node)

    def _give_up(self, node: bytes) -> None:
        if node in self._expected:
            self._on_node_died(node, "this cluster does not know it")

    def _on_node_died(self, node: bytes, cause: str) -> None:
        self._expected.pop(node, None)
        self.handle(events.NodeDied(node, cause))
        self._loop.call_soon(self.handle, events.EstatesComplete(node))  # when all parts of the daemon have heard of it
        if node in self._copy_for.values() or node in self._kept_for.values():
            self._orphaned_later(ORPHANED_S, self._free_orphaned, node)

    def _orphaned_later(self, delay_s: float, then: Callable[..., None], *args: Any) -> None:
        """Call `then` when the heirs of what has no home have had time to ask for it: the GCS must name them first."""
        key = {"namespace": HEIRS, "key": b""}
        self._call_gcs("gcs.kv_get", key, lambda body, error: self._loop.call_later(delay_s, then, *args))

    def _free_orphaned(self, home: bytes) -> None:
        """What lies here for a home that died, and that nobody wants: nobody refers to it."""
        orphans = [oid for table in (self._copy_for, self._kept_for) for oid, keeper in table.items() if keeper == home]
        for oid in orphans:
            self._copy_for.pop(oid, None)
            self._kept_for.pop(oid, None)
            self._with_refs.discard(oid)
        orphans = [oid for oid in orphans if not self.machine.lies_here(oid)]  # made here once more
        if orphans:
            self._store.free(orphans)

    def _expire_later(self, effect: events.ExpireLater) -> None:
        delay_s = INHERITED_S if effect.soon else ORPHANED_S
        self._orphaned_later(delay_s, self.handle, events.EstateExpired(effect.of))

    def _on_node_hold(self, node: bytes, message: node_messages.NodeHold) -> None:
        self._meet(node)
        self.handle(events.NodeHoldArrived(node, message.number, message.oids))

    def _on_node_held(self, node: bytes, message: node_messages.NodeHeld) -> None:
        self._meet(node)
        self.handle(events.NodeHoldConfirmed(node, message.number))

    def _on_node_release(self, node: bytes, message: node_messages.NodeRelease) -> None:
        self.handle(events.NodeReleaseArrived(node, message.items))

    def _on_need_lineage(self, node: bytes, message: messages.NeedLineage) -> None:
        self.handle(events.NeedsTold(node, message.oids, message.ended))

    def _on_hold_for(self, node: bytes, message: node_messages.HoldFor) -> None:
        self._meet(node)
        self._expect(message.home)
        self.handle(
            events.HoldForArrived(node, message.number, message.process, message.oids, message.home, message.giver)
        )

    def _on_hold_for_done(self, node: bytes, message: node_messages.HoldForDone) -> None:
        self.handle(events.HoldForConfirmed(node, message.number))

    def _on_resolve_for(self, node: bytes, message: node_messages.ResolveFor) -> None:
        self._meet(node)
        self.handle(events.ResolveAsked(node, message.oids, message.stale_generation, b"", message.stale_node))

    def _on_resolved(self, node: bytes, message: messages.Resolved) -> None:
        self.handle(events.ResolvedAbroad(node, message.oid, message.value))

    def _on_cancel_from(self, node: bytes, message: messages.CancelObject) -> None:
        self._cancel_here(message)

    def _on_free_stored(self, node: bytes, message: node_messages.FreeStored) -> None:
        if message.giver:
            self._store.free_of(message.giver, message.oids)
        else:  # but what is this node's own by now is not the sender's: it was made here once more (an actor's replay)
            self._free_kept([oid for oid in message.oids if not self.machine.lies_here(oid)])

    def _on_keep_stored(self, node: bytes, message: node_messages.KeepStored) -> None:
        for oid in message.oids:
            self._kept_for[oid] = node
            if message.holds_refs:
                self._with_refs.add(oid)

    def _free_kept(self, oids: list[bytes]) -> None:
        copies = []
        for oid in oids:
            self._kept_for.pop(oid, None)
            self._with_refs.discard(oid)
            if self._copy_for.pop(oid, None) is not None:
                copies.append(oid)
        if copies:
            self._store.free(
                copies, of_dead=True
            )  # nobody has sealed these anew: who does from now on means what he seals
            oids = [oid for oid in oids if oid not in copies]
        self._store.free(oids)

    # ---------------------------------------------------------------- what dead owners had running elsewhere

    def _say(self, node: bytes, message: Any, hear: Callable[[bytes, Any], None]) -> None:
        """Tell a node something; this one, soon."""
        if node == self._node_id:
            self._loop.call_soon(hear, node, message)
        else:
            self._links.send(node, message)

    def _ask_claims_of(self, effect: events.AskClaimsOf) -> None:
        self._say(effect.node, node_messages.AskForeignClaims(effect.of, effect.is_node), self._on_claims_asked)
        self._loop.call_later(CLAIMS_WAIT_S, self.handle, events.ClaimsOverdue(effect.node, effect.of, effect.number))

    def _on_claims_asked(self, node: bytes, message: node_messages.AskForeignClaims) -> None:
        self.handle(events.ClaimsAsked(node, message.of, message.is_node))

    def _tell_claims(self, effect: events.TellClaims) -> None:
        stored = [
            oid for oid, home in self._kept_for.items() if self._links.is_dead(home) and oid not in self._with_refs
        ]
        told = node_messages.ForeignClaims(effect.of, effect.task_ids, stored, effect.begun)
        self._say(effect.node, told, self._on_claims_told)

    def _on_claims_told(self, node: bytes, message: node_messages.ForeignClaims) -> None:
        self.handle(events.ClaimsTold(node, message.of, message.task_ids, message.stored, message.begun))

    def _take_claims(self, effect: events.TakeClaims) -> None:
        self._say(effect.node, node_messages.TakeClaims(effect.of, effect.oids), self._on_claims_taken)

    def _on_claims_taken(self, node: bytes, message: node_messages.TakeClaims) -> None:
        running = []
        for oid in message.oids:
            if not self._links.is_dead(self._kept_for.get(oid, b"")):
                running.append(oid)
                continue
            self._kept_for[oid] = node
            self._spawn(self._give(oid, node))
        if running:
            self.handle(events.ClaimsTaken(node, message.of, running))

    async def _give(self, oid: bytes, node: bytes) -> None:
        """Tell the heir of a dead home where an object lies that this node has kept."""
        try:
            place = await self._store.ensure_resident(oid)
        except ShoalError:
            place = None  # `lost` has forgotten it; who has taken it must hear of that
        is_kept = self._kept_for.get(oid) == node
        if place is not None and not is_kept:
            return
        if is_kept and (place is None or node == self._node_id):
            del self._kept_for[oid]
        value = place and Stored(oid, place.segment, place.offset, place.size, place.generation, [], self._node_id)
        self._say(node, node_messages.ClaimMade(oid, value), self._on_claim_made)

    def _tell_claim_made(self, effect: events.TellClaimMade) -> None:
        if type(effect.value) is Stored:
            self._kept_for[effect.oid] = effect.node
        self._links.send(effect.node, node_messages.ClaimMade(effect.oid, effect.value))

    def _on_claim_made(self, node: bytes, message: node_messages.ClaimMade) -> None:
        self.handle(events.ClaimMade(node, message.oid, message.value))

    # ---------------------------------------------------------------- further copies

    def on_keep_copies(self, process: Process, message: messages.KeepCopies) -> None:
        """A process wants what it has put to be on several nodes."""
        self.handle(events.CopiesAsked(process.worker_id, message.request, message.oid, message.number))

    def _answer_copies(self, effect: events.AnswerCopies) -> None:
        body = {"made": effect.made, "nodes": effect.nodes, "reason": effect.reason}
        self._table.send(effect.process, messages.Answer(effect.request, body))

    def _ask_copy(self, effect: events.AskCopy) -> None:
        if effect.node == self._node_id:
            self._loop.call_soon(self._on_keep_copy, self._node_id, node_messages.KeepCopy(effect.stored))
        else:
            self._links.send(effect.node, node_messages.KeepCopy(effect.stored))

    def _on_keep_copy(self, home: bytes, message: node_messages.KeepCopy) -> None:
        """A home wants this node to keep a copy; or to go on keeping it, for a home that is dead."""
        oid = message.stored.oid
        if oid in self._copy_for:
            self._copy_for[oid] = home

        def here(place: Stored | None, reason: str) -> None:
            if place is not None:
                place = self._store.keep_copy(oid, b"") or None
                reason = "" if place is not None else "it had to make room for others"
            if place is None:
                told = node_messages.CopyKept(oid, None, reason)
            else:
                if home != self._node_id:
                    self._copy_for[oid] = home
                stored = Stored(oid, place.segment, place.offset, place.size, place.generation, [], self._node_id)
                told = node_messages.CopyKept(oid, stored)
            if home == self._node_id:
                self._on_copy_kept(home, told)
            else:
                self._links.send(home, told)

        if self._fetch is not None:
            self._fetch(message.stored, here)

    def _on_copy_kept(self, node: bytes, message: node_messages.CopyKept) -> None:
        self.handle(events.CopyKept(node, message.oid, message.stored, message.reason))

    def leave(self) -> dict[str, int]:
        """This node leaves: see that what others need outlives it. What does not (yet), in words and numbers."""
        copies, links = self.machine.copies(), self._links
        self.handle(events.HomeLeaves([entry.node_id for entry in links.nodes.values() if entry.draining]))
        lying = [row.oid for row in self._store.kept_for_others(self._table.by_id) if row.oid not in self._copy_for]
        refs, needed = copies.left_over(lying)
        return {
            "refs that other nodes have to objects here": refs,
            "objects in its store that others need": needed,
            "messages that others have not read": links.unconfirmed if copies.held_abroad() else 0,
        }

    # ---------------------------------------------------------------- from the store

    def moved(self, oid: bytes, stored: Stored | None) -> None:
        """An object lies somewhere else, or (None) on disk only."""
        self.handle(events.Moved(oid, stored))

    def lost(self, oid: bytes, reason: str, owner: bytes) -> None:
        """An object's bytes are gone."""
        self._kept_for.pop(oid, None)  # its home hears of it from whoever reads it
        home = self._copy_for.pop(oid, b"")
        if home:
            self._links.send(home, node_messages.CopyKept(oid, None, reason))
            return
        self.handle(events.Lost(oid, reason, owner))

    def lost_abroad(self, oid: bytes, node: bytes, reason: str) -> None:
        """No copy can be had of an object that lay in the store of another node: who asks for it from now on is told."""
        value = self.machine.value_of(oid)
        if type(value) is Stored and value.node == node:
            self.handle(events.Lost(oid, reason, node=node))

    # ---------------------------------------------------------------- effects

    def _send_resolved(self, effect: events.SendResolved) -> None:
        process = self._table.by_id.get(effect.process)
        if process is not None:
            process.send(messages.Resolved(effect.oid, effect.value))
            if type(effect.value) is Stored:
                self._store.used(effect.oid)
        elif self.machine.knows_node(effect.process):
            self._links.send(effect.process, messages.Resolved(effect.oid, effect.value))

    def _send_remake(self, effect: events.SendRemake) -> None:
        self._table.send(effect.process, messages.Remake(effect.oid, effect.reason, effect.held))

    def _send_being_remade(self, effect: events.SendBeingRemade) -> None:
        self._table.send(effect.process, messages.BeingRemade(effect.oid))

    def _free(self, effect: events.FreeStored) -> None:
        if effect.node:
            self._links.send(effect.node, node_messages.FreeStored([effect.oid]))
        else:
            self._freed.append(effect.oid)

    def _keep_stored(self, effect: events.KeepStored) -> None:
        self._links.send(effect.node, node_messages.KeepStored([effect.oid], effect.holds_refs))

    def _send_node_hold(self, effect: foreign_holds.SendNodeHold) -> None:
        self._links.send(effect.node, node_messages.NodeHold(effect.number, effect.oids))

    def _send_node_held(self, effect: events.SendNodeHeld) -> None:
        self._links.send(effect.node, node_messages.NodeHeld(effect.number))

    def _send_node_release(self, effect: foreign_holds.SendNodeRelease) -> None:
        self._links.send(effect.node, node_messages.NodeRelease(effect.items))

    def _tell_needs(self, effect: events.TellNeeds) -> None:
        self._links.send(effect.node, messages.NeedLineage(effect.oids, effect.ended))

    def _send_hold_for(self, effect: events.SendHoldFor) -> None:
        self._links.send(
            effect.node, node_messages.HoldFor(effect.number, effect.process, effect.oids, effect.home, effect.giver)
        )

    def _send_hold_for_done(self, effect: foreign_holds.SendHoldForDone) -> None:
        self._links.send(effect.node, node_messages.HoldForDone(effect.number))

    def _send_mirrors(self, effect: events.SendMirrors) -> None:
        items = [
            (each.oid, each.lineage, each.needs, each.function_id, each.code, each.value, each.copies, each.places)
            for each in effect.items
        ]
        self._links.send(effect.node, node_messages.MirrorLineage(items))

    def _drop_mirrors(self, effect: events.DropMirrors) -> None:
        self._links.send(effect.node, node_messages.DropMirrors(effect.oids))

    def _on_mirrors(self, node: bytes, message: node_messages.MirrorLineage) -> None:
        self.handle(events.MirrorsArrived(node, [events.MirrorItem(*item) for item in message.items]))

    def _on_mirrors_dropped(self, node: bytes, message: node_messages.DropMirrors) -> None:
        self.handle(events.MirrorsDropped(node, message.oids))

    def inherit(self, call_gcs: Callable[..., None], fetch: Fetch) -> None:
        """Objects whose home dies get another one, which the GCS knows; others can be on several nodes, to which `fetch` brings them."""
        self._call_gcs = call_gcs
        self._fetch = fetch
        self.machine.inherit()

    def _ask_heir(self, effect: events.AskHeir) -> None:
        """The first node that can be the home, and says so, is."""
        oid, own = effect.oid, self._node_id
        key = {"namespace": HEIRS, "key": oid}

        def again(error: list[str]) -> None:
            if error[0] != "GcsUnavailable":  # `gcs_health` tells of that
                log.warning("who inherits object %s is not known yet (%s); asking again", oid.hex(), ": ".join(error))
            self._loop.call_later(HEIR_WAIT_S, self._ask_heir, effect)

        def found(body: Any, error: list[str], last: bool = True) -> None:
            if error:
                again(error)
            elif not body["value"] and not last:  # who can may not have said so yet
                self._loop.call_later(HEIR_WAIT_S, self._call_gcs, "gcs.kv_get", key, found)
            else:
                self.handle(events.HeirTold(oid, body["value"] or b""))

        def claimed(body: Any, error: list[str]) -> None:
            if error:
                again(error)  # an heir whom the GCS does not know would be a second one
            elif body["added"]:
                self.handle(events.HeirTold(oid, own))
            else:
                self._call_gcs("gcs.kv_get", key, found)

        if effect.able:
            self._call_gcs("gcs.kv_put", {**key, "value": own, "overwrite": False}, claimed)
        else:
            self._call_gcs("gcs.kv_get", key, lambda body, error: found(body, error, last=False))

    def _forget_heir(self, effect: events.ForgetHeir) -> None:
        self._call_gcs("gcs.kv_del", {"namespace": HEIRS, "key": effect.oid}, lambda body, error: None)

    def _send_resolve_for(self, effect: events.SendResolveFor) -> None:
        self._links.send(effect.node, node_messages.ResolveFor(effect.oids, effect.stale_generation, effect.stale_node))

    def _confirm_holds(self, effect: foreign_holds.ConfirmHolds) -> None:
        process = self._table.by_id.get(effect.process)
        if process is not None:
            process.send(messages.HoldsConfirmed(effect.count))
        else:
            self.on_keeper_confirmed(effect.process, effect.count)

    def _ensure_resident(self, effect: events.EnsureResident) -> None:
        self._spawn(self._bring(effect.oid, effect.process))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring(self, oid: bytes, process_id: bytes) -> None:
        try:
            stored = await self._store.ensure_resident(oid)
        except ObjectLostError:
            pass  # the store has told of it (`lost`)
        except ShoalError as error:
            # No room for it now: an answer for who asked, not the object's end.
            self.handle(events.NoRoom(oid, process_id))
            process = self._table.by_id.get(process_id)
            if process is not None:
                value = self.machine.value_of(oid)
                place = value if type(value) is Stored else None
                process.send(messages.NoRoomFor(oid, place, Failed(dumps_error(error))))
        else:
            self.moved(oid, stored)

    def _request_sweep(self, effect: events.RequestSweep) -> None:
        self._loop.call_later(RELEASE_SWEEP_S, self._begin_sweep, effect.token)

    def _handle_gone(self, effect: events.ActorHandleGone) -> None:
        self._on_handles_gone(effect.actor_id)

    # ---------------------------------------------------------------- sweeps

    def _begin_sweep(self, token: int) -> None:
        self.when_read(lambda: self.handle(events.Swept(token)))

    def when_read(self, then: Callable[[], None]) -> None:
        """Call `then` once all that local processes have written by now is read and handled."""
        self._sweep(then, list(self._connections()))

    def _sweep(self, then: Callable[[], None], unseen: list[Connection]) -> None:
        left = [connection for connection in unseen if not connection.closed and not connection.drain()]
        if left:
            self._loop.call_soon(self._sweep, then, left)
        else:
            then()


_PERFORM: dict[type, Callable[[Objects, Any], None]] = {
    events.SendResolved: Objects._send_resolved,
    events.SendRemake: Objects._send_remake,
    events.SendBeingRemade: Objects._send_being_remade,
    events.Adopted: Objects._adopt,
    events.AskClaims: Objects._ask_claims,
    events.AskClaimsOf: Objects._ask_claims_of,
    events.TellClaims: Objects._tell_claims,
    events.TakeClaims: Objects._take_claims,
    events.TellClaimMade: Objects._tell_claim_made,
    events.EstateSettled: Objects._estate_settled,
    events.ExpireLater: Objects._expire_later,
    events.OrphansSettled: Objects._settled,
    events.FreeStored: Objects._free,
    events.EnsureResident: Objects._ensure_resident,
    events.RequestSweep: Objects._request_sweep,
    events.ActorHandleGone: Objects._handle_gone,
    events.KeepStored: Objects._keep_stored,
    foreign_holds.SendNodeHold: Objects._send_node_hold,
    events.SendNodeHeld: Objects._send_node_held,
    foreign_holds.SendNodeRelease: Objects._send_node_release,
    events.TellNeeds: Objects._tell_needs,
    events.SendHoldFor: Objects._send_hold_for,
    foreign_holds.SendHoldForDone: Objects._send_hold_for_done,
    events.SendResolveFor: Objects._send_resolve_for,
    events.SendMirrors: Objects._send_mirrors,
    events.DropMirrors: Objects._drop_mirrors,
    events.AskHeir: Objects._ask_heir,
    events.ForgetHeir: Objects._forget_heir,
    events.AskCopy: Objects._ask_copy,
    events.AnswerCopies: Objects._answer_copies,
    foreign_holds.ConfirmHolds: Objects._confirm_holds,
}

_FROM_NODES: dict[type, Any] = {
    node_messages.NodeHold: Objects._on_node_hold,
    node_messages.NodeHeld: Objects._on_node_held,
    node_messages.NodeRelease: Objects._on_node_release,
    messages.NeedLineage: Objects._on_need_lineage,
    node_messages.HoldFor: Objects._on_hold_for,
    node_messages.HoldForDone: Objects._on_hold_for_done,
    node_messages.ResolveFor: Objects._on_resolve_for,
    node_messages.MirrorLineage: Objects._on_mirrors,
    node_messages.DropMirrors: Objects._on_mirrors_dropped,
    messages.Resolved: Objects._on_resolved,
    messages.CancelObject: Objects._on_cancel_from,
    node_messages.FreeStored: Objects._on_free_stored,
    node_messages.KeepStored: Objects._on_keep_stored,
    node_messages.AskForeignClaims: Objects._on_claims_asked,
    node_messages.ForeignClaims: Objects._on_claims_told,
    node_messages.TakeClaims: Objects._on_claims_taken,
    node_messages.ClaimMade: Objects._on_claim_made,
    node_messages.KeepCopy: Objects._on_keep_copy,
    node_messages.CopyKept: Objects._on_copy_kept,
}
